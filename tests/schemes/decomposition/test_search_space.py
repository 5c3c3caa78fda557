"""Groups of a student's variables, and freezing."""

import keras
import numpy as np
import pytest

import tfcompress as tfc


@pytest.fixture
def student():
    """Two dense layers with batch normalization between them."""
    x = inputs = keras.Input((6,))
    x = keras.layers.Dense(8, name="a")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    model = keras.Model(inputs, keras.layers.Dense(5, name="b")(x))
    return tfc.compress(model, tfc.Decomposition(macs="1/2", margin=1.0))


def weights_after_steps(student, connections, strength):
    """Trainable weights after three steps with a lasso of so many `connect` calls."""
    space, optimizer = student.rank_space, keras.optimizers.SGD(0.05)
    optimizer.build(student.trainable_variables)
    for _ in range(connections):
        space.connect()
        space.lasso.attach(optimizer)
        space.lasso.set_strengths(strength)
    space.normalize()
    student.compile(optimizer, "mse")
    inputs = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    student.training_run.trainer = student  # as in a loop with its callbacks
    for _ in range(3):
        student.train_on_batch(inputs, inputs[:, :5])
    return [np.array(weight) for weight in student.trainable_weights]


def test_connecting_twice_trains_to_the_weights_of_connecting_once(student):
    start = student.get_weights()
    once = weights_after_steps(student, 1, strength=0.5)
    student.set_weights(start)
    twice = weights_after_steps(student, 2, strength=0.5)
    student.set_weights(start)
    without = weights_after_steps(student, 1, strength=0.0)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a, b)
    changed = [(a != b).any() for a, b in zip(once, without, strict=True)]
    assert all(changed)


def test_a_group_has_the_variables_of_its_channels(student):
    space, layer = student.rank_space, student.get_layer("a")
    ((group_set, slices),) = space.channel_groups
    assert len(group_set.groups) == 8
    norm = student.get_layer("norm")
    expected = [layer.coefficients, layer.bias, norm.gamma, norm.beta]
    received = [member.variable for member in slices.members]
    assert [id(x) for x in received] == [id(x) for x in expected]


def test_scales_set_the_norms_of_another_time(student):
    space = student.rank_space
    space.normalize()
    scales, before = space.scales(), space.mean_norm()
    coefficients = student.get_layer("b").coefficients
    coefficients.assign(2 * np.array(coefficients))
    space.normalize()
    assert space.mean_norm() == pytest.approx(before, rel=1e-5)
    space.set_scales(scales)
    assert space.mean_norm() > 1.05 * before


def test_freeze_masks_the_channels_and_ranks_that_are_not_kept(student):
    space = student.rank_space
    assert not space.is_frozen()
    keep_groups = np.ones(len(space.removable), bool)
    keep_groups[space.channels.written["a"][2]] = False
    keep_ranks = {"a": np.arange(6) != 1, "b": np.ones(5, bool)}
    space.freeze(keep_groups, keep_ranks)
    assert space.is_frozen()
    a, b = space.layers["a"], space.layers["b"]
    np.testing.assert_array_equal(a.rank_mask, np.arange(6) != 1)
    np.testing.assert_array_equal(a.input_mask, np.ones(6))
    np.testing.assert_array_equal(b.rank_mask, np.ones(5))
    np.testing.assert_array_equal(b.input_mask, np.arange(8) != 2)
