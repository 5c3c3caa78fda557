"""ADMM: its proximal step after steps of SGD, and its iteration."""

import warnings

import keras
import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import counts, move, new_space
from tfcompress.quantizers.clustering import SortedNonZeros, counts_and_distortions
from tfcompress.schemes.size_constrained.admm import AdmmStep

RHO = 3.0


def regression(optimizer, constraint=None):
    """A linear model without bias, its data, and the gradient of its loss."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3, use_bias=False, kernel_constraint=constraint)
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer, "mse")
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    x, y = x.astype("float32"), y.astype("float32")
    return model, layer.kernel, (x, y), lambda w: 2 * x.T @ (x @ w - y) / y.size


def target(shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def descend(w, a, gradient, rates, rho=RHO, constraint=lambda w: w):
    """Steps of SGD in NumPy, each with the proximal step after it."""
    for rate in rates:
        w = constraint(w - rate * gradient(w))
        w = (w + rate * rho * a) / (1 + rate * rho)
    return w


@pytest.mark.parametrize("rate", ["constant", "schedule", "zero"])
def test_proximal_step_after_sgd_takes_the_learning_rate_of_the_step(rate):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.3, 5, 0.01)
    plain = {"constant": 0.3, "zero": 0.0}.get(rate, schedule)
    optimizer = keras.optimizers.SGD(plain)
    model, kernel, data, gradient = regression(optimizer)
    w, a = np.array(kernel), target(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=8, epochs=4, shuffle=False, verbose=0)
    rates = [float(schedule(i)) if rate == "schedule" else plain for i in range(4)]
    np.testing.assert_allclose(kernel, descend(w, a, gradient, rates), atol=1e-5)


def test_accumulated_gradients_are_followed_by_one_proximal_step():
    """Two steps of four examples end where one of eight does."""
    optimizer = keras.optimizers.SGD(0.3, gradient_accumulation_steps=2)
    model, kernel, data, gradient = regression(optimizer)
    w, a = np.array(kernel), target(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=4, epochs=3, shuffle=False, verbose=0)
    expected = descend(w, a, gradient, [0.3] * 3)
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


def test_proximal_step_minimizes_its_objective():
    """argmin t / 2 (w - A)^2 + (w - W)^2 / 2: its derivative is zero."""
    optimizer = keras.optimizers.SGD(0.2)
    _, kernel, _, _ = regression(optimizer)
    w, a = np.array(kernel), target(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    drawn = np.array(kernel.constraint(kernel))
    np.testing.assert_allclose(0.2 * RHO * (drawn - a) + drawn - w, 0, atol=1e-6)


def test_each_kernel_is_drawn_to_its_own_target():
    optimizer = keras.optimizers.SGD(1.0)
    kernels = [keras.Variable(np.zeros(shape)) for shape in ((2, 3), (4,))]
    optimizer.build(kernels)
    step = AdmmStep(kernels)
    step.attach(optimizer)
    targets = [target(kernel.shape) for kernel in kernels]
    step.assign(1.0, targets)
    for kernel, a in zip(kernels, targets, strict=True):
        np.testing.assert_allclose(kernel.constraint(kernel), a / 2, rtol=1e-6)
    step.assign(3.0)  # the targets stay
    for kernel, a in zip(kernels, targets, strict=True):
        np.testing.assert_allclose(kernel.constraint(kernel), a * 3 / 4, rtol=1e-6)


def test_proximal_step_follows_the_layers_own_constraint():
    optimizer = keras.optimizers.SGD(0.3)
    own = keras.constraints.NonNeg()
    model, kernel, data, gradient = regression(optimizer, own)
    w, a = np.array(kernel), target(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0)
    expected = descend(w, a, gradient, [0.3] * 3, constraint=lambda w: np.maximum(w, 0))
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


@pytest.mark.parametrize("state", ["new", "attached", "detached", "attached again"])
def test_proximal_step_without_optimizer_or_rho_changes_nothing(state):
    optimizer = keras.optimizers.SGD(0.3)
    model, kernel, data, gradient = regression(optimizer)
    w = np.array(kernel)
    step = AdmmStep([kernel])
    if state != "new":
        step.attach(optimizer)
    if state.startswith(("detached", "attached again")):
        step.assign(RHO, [target(kernel.shape)])
        step.detach() if state == "detached" else step.attach(optimizer)
    model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(kernel, descend(w, 0, gradient, [0.3] * 2, 0), atol=1e-5)


def test_proximal_step_moves_its_variables_to_another_optimizer():
    kernel = keras.Variable(np.zeros((2, 3)))
    first, second = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.5)
    before = [len(first.variables), len(second.variables)]
    step = AdmmStep([kernel])
    step.attach(first)
    step.attach(second)
    assert [len(first.variables), len(second.variables)] == [before[0], before[1] + 2]
    step.assign(2.0, [target((2, 3))])
    np.testing.assert_allclose(
        kernel.constraint(kernel), target((2, 3)) / 2, rtol=1e-6
    )  # t = 0.5 * 2


def test_model_saved_after_detach_loads_without_warnings(tmp_path):
    optimizer = keras.optimizers.SGD(0.3, momentum=0.9)
    model, kernel, data, _ = regression(optimizer)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [target(kernel.shape)])
    model.fit(*data, batch_size=8, verbose=0)
    step.detach()
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as an optimizer that is not loaded
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_second_proximal_step_of_a_kernel_replaces_the_first():
    optimizer = keras.optimizers.SGD(0.3)
    model, kernel, data, gradient = regression(optimizer)
    w, a = np.array(kernel), target(kernel.shape)
    for _ in range(2):
        step = AdmmStep([kernel])
        step.attach(optimizer)
        step.assign(RHO, [a])
    model.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0)
    expected = descend(w, a, gradient, [0.3] * 3)
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


def state(space):
    """`{name: (W, V - U, U)}`, float64."""
    return {
        name: [
            np.array(x, "float64")
            for x in (layer.latent_kernel, layer.kernel_quantizer.anchor,
                      layer.kernel_quantizer.dual)
        ]
        for name, layer in space.codebooks.layers.items()
    }  # fmt: skip


def distinct(values):
    """Ascending, without those that differ only by rounding."""
    values = np.unique(values)
    apart = np.diff(values, prepend=-np.inf) > 1e-4 * np.abs(values).max()
    return values[apart]


def test_admm_starts_with_v_equal_to_w_and_no_dual_variable(started):
    for kernel, target, dual in state(started).values():
        np.testing.assert_array_equal(target, kernel)
        assert not dual.any()


def test_projection_keeps_the_weights_that_the_budget_pays_for(started_sparse):
    """Each costs the mean of the kept weights of its layer before the projection."""
    space, codebooks = started_sparse, started_sparse.codebooks
    budget = space.allocation.budget
    move(codebooks)
    before, allowed = codebooks.kernels(), budget.allowed()
    kept, took = counts(codebooks), budget.nominal_bits(codebooks.codes())
    cost = {name: took[name] / count for name, count in kept.items()}
    space.admm.project(space.allocation)
    masks = codebooks.masks()
    spent = sum(mask.sum() * cost[name] for name, mask in masks.items())
    assert allowed - max(cost.values()) <= spent <= allowed
    thresholds = {}
    for name, kernel in codebooks.kernels().items():
        np.testing.assert_array_equal(kernel, before[name] * masks[name])
        efficiency = before[name] ** 2 / cost[name]
        least = codebooks.min_counts()[name]
        if not masks[name].all() and masks[name].sum() > least:
            thresholds[name] = efficiency[masks[name]].min()
    # One threshold on w^2 per bit for all layers together.
    assert len(thresholds) > 1
    for name, mask in masks.items():
        dropped = (before[name] ** 2 / cost[name])[~mask].max(initial=0)
        assert dropped <= min(thresholds.values())


def test_projection_is_an_iteration_of_admm(started):
    space, codebooks = started, started.codebooks
    move(codebooks)
    space.admm.project(space.allocation)
    move(codebooks, 2)
    before = state(space)
    space.admm.project(space.allocation)
    distance = norm = 0.0
    for name, (kernel, target, dual) in state(space).items():
        sums = kernel + before[name][2]
        quantized = target + dual
        np.testing.assert_allclose(dual, sums - quantized, atol=1e-6)
        levels = distinct(quantized)
        bits = codebooks.bits[name]
        most = 2**bits - 1 if codebooks.kind == "uniform" else 2**bits + 1
        assert np.count_nonzero(np.abs(levels) > 1e-6) + 1 <= most
        nearest = np.abs(sums[..., None] - levels).min(axis=-1)
        np.testing.assert_allclose(np.abs(sums - quantized), nearest, atol=1e-5)
        distance += np.square(kernel - quantized).sum()
        norm += np.square(kernel).sum()
    assert space.admm.residual == pytest.approx(np.sqrt(distance / norm), rel=1e-4)
    assert space.admm.residual > 0
    for received, (_, expected, _) in zip(
        space.admm.targets(), state(space).values(), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


def test_projection_chooses_bits_for_the_cost_of_the_kept_weights(started):
    space, codebooks = started, started.codebooks
    budget = space.allocation.budget
    move(codebooks)
    before, allowed = codebooks.bits, budget.allowed()
    space.admm.project(space.allocation)
    masks, spent = codebooks.masks(), 0.0
    for name, kernel in codebooks.kernels().items():
        values = SortedNonZeros(kernel)
        [(taken, _)] = counts_and_distortions(values, [before[name]], codebooks.kind)
        spent += budget.rate(taken, masks[name].size, before[name])
    nominal = sum(budget.nominal_bits(codebooks.codes()).values())
    # The scan for steps that compares bits is coarser than that for codebooks.
    assert nominal <= max(allowed, spent) * 1.02
    assert all(width in codebooks.bit_widths for width in codebooks.bits.values())


def test_iterations_of_admm_bring_w_and_v_together(start_once):
    """Kernels take their targets at once, as with an infinite rho."""
    space = start_once("value bits, kmeans")
    residuals = []
    for _ in range(8):
        space.admm.project(space.allocation)
        residuals.append(space.admm.residual)
        targets = dict(zip(space.codebooks.layers, space.admm.targets(), strict=True))
        space.codebooks.set_kernels(targets)
    assert residuals[-1] < 0.5 * residuals[0]


def test_stopped_admm_has_no_residual_and_does_not_draw():
    space = new_space("value bits, uniform")
    kernel = space.codebooks.layers["few"].latent_kernel
    space.admm.step.attach(keras.optimizers.SGD(1.0))
    space.start()
    space.admm.project(space.allocation)
    assert space.admm.residual is not None
    space.admm.step.assign(1.0, [0 * x for x in space.admm.targets()])
    np.testing.assert_allclose(kernel.constraint(kernel), np.array(kernel) / 2)
    space.admm.stop()
    assert space.admm.residual is None
    np.testing.assert_array_equal(kernel.constraint(kernel), kernel)
