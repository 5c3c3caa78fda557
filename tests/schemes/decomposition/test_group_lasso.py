"""Groups of slices and their proximal step, alone and in `fit`."""

import keras
import numpy as np
import pytest

from tfcompress.schemes.decomposition.group_lasso import GroupLasso, SliceGroups


class ConstantStep(GroupLasso):
    """Without an optimizer."""

    def __init__(self, step):
        super().__init__()
        self.value = step

    def steps(self, groups):
        return keras.ops.full((len(groups.weights),), self.value)


def variable(shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return keras.Variable(values)


def test_norms_are_relative_to_those_of_the_members():
    """Three groups: columns of a matrix, and entries of a vector in another order."""
    matrix, vector = variable((4, 3)), variable((5,), seed=1)
    groups = SliceGroups(np.ones(3))
    groups.add(matrix, 1, [0, 1, 2])
    groups.add(vector, 0, [2, -1, 0, 1, 2])
    groups.normalize()
    m, v = np.array(matrix), np.array(vector)
    columns = (m**2).sum(axis=0) / (m**2).sum()
    entries = np.array([v[2] ** 2, v[3] ** 2, v[0] ** 2 + v[4] ** 2]) / (v**2).sum()
    np.testing.assert_allclose(groups.norms(), np.sqrt(columns + entries), rtol=1e-5)


def test_a_variable_of_zeros_does_not_outweigh_the_others():
    matrix, bias = variable((4, 3)), keras.Variable(np.zeros(3, "float32"))
    groups = SliceGroups(np.ones(3))
    groups.add(matrix, 1, np.arange(3))
    groups.add(bias, 0, np.arange(3))
    groups.normalize()
    before = np.array(groups.norms())
    bias.assign([0.01, -0.01, 0.01])
    np.testing.assert_allclose(groups.norms(), before, rtol=0.05)


def test_proximal_step_minimizes_its_objective():
    """prox(x) = argmin t ||z|| + ||z - x||^2 / 2, by a search over multiples of x."""
    matrix = variable((6, 4))
    groups = SliceGroups(np.array([0.5, 1.0, 2.0, 40.0]))
    groups.add(matrix, 1, np.arange(4))
    ConstantStep(0.4).add(groups)
    received = np.array(matrix.constraint(matrix))
    multiples = np.linspace(0, 1, 100_001)
    for j, weight in enumerate(groups.weights):
        x = np.array(matrix)[:, j]
        norm = np.linalg.norm(x)
        loss = 0.4 * weight * multiples * norm + (norm * (multiples - 1)) ** 2 / 2
        np.testing.assert_allclose(
            received[:, j], multiples[loss.argmin()] * x, atol=1e-4
        )
    assert not received[:, 3].any() and received[:, :3].all()


def test_members_of_a_group_shrink_by_one_factor_in_each_step():
    """Also where the first variable to be updated has changed since the last step."""
    matrix, vector = variable((4, 3)), variable((3,), seed=1)
    groups = SliceGroups(np.ones(3))
    groups.add(matrix, 1, np.arange(3))
    groups.add(vector, 0, np.arange(3))
    ConstantStep(0.1).add(groups)
    for _ in range(3):
        expected = 1 - 0.1 / np.array(groups.norms())
        for member in (matrix, vector):
            received = np.array(member.constraint(member)) / np.array(member)
            np.testing.assert_allclose(
                received, np.broadcast_to(expected, received.shape), rtol=1e-4
            )
            member.assign(received * np.array(member))
        matrix.assign(2 * matrix)


def test_proximal_step_keeps_slices_in_no_group_and_the_own_constraint():
    vector = variable((3,))
    vector.constraint = keras.constraints.NonNeg()
    groups = SliceGroups(np.ones(1))
    groups.add(vector, 0, [-1, 0, -1])
    ConstantStep(1e6).add(groups)
    expected = np.maximum(np.array(vector), 0)
    expected[1] = 0
    np.testing.assert_array_equal(vector.constraint(vector), expected)


@pytest.mark.parametrize("rate", ["constant", "schedule"])
def test_norms_fall_by_strength_times_learning_rate(rate):
    """||w|| falls by strength * learning rate in each step, without a gradient."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)
    optimizer = keras.optimizers.SGD(0.1 if rate == "constant" else schedule)
    lasso = GroupLasso()
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    kernel = model.layers[-1].kernel
    kernel.assign([[3.0], [4.0]])
    groups = SliceGroups(np.ones(1))
    groups.add(kernel, 1, [0])
    lasso.add(groups)
    model.compile(optimizer, "mse")
    lasso.attach(optimizer)
    lasso.set_strengths(2.0)
    x = np.zeros((5, 2), "float32")
    model.fit(x, x[:, :1], batch_size=1, verbose=0)
    rates = [0.1] * 5 if rate == "constant" else [float(schedule(i)) for i in range(5)]
    assert np.linalg.norm(kernel) == pytest.approx(5.0 - 2.0 * sum(rates), rel=1e-5)
    lasso.attach(optimizer)  # again: the same variable, with strengths of 0
    assert len(optimizer.variables) == len(set(map(id, optimizer.variables)))
    model.fit(x, x[:, :1], batch_size=1, verbose=0)
    assert np.linalg.norm(kernel) == pytest.approx(5.0 - 2.0 * sum(rates), rel=1e-5)
