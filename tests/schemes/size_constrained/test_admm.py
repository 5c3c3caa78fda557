"""The proximal step of ADMM, behind real steps of SGD."""

import warnings

import keras
import numpy as np
import pytest

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


def anchor(shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def descend(w, a, gradient, rates, rho=RHO, constraint=lambda w: w):
    """Steps of SGD, each with the proximal step behind it, in NumPy."""
    for rate in rates:
        w = constraint(w - rate * gradient(w))
        w = (w + rate * rho * a) / (1 + rate * rho)
    return w


@pytest.mark.parametrize("rate", ["constant", "schedule", "zero"])
def test_a_step_of_sgd_is_followed_by_the_proximal_step(rate):
    """It takes the learning rate that the step itself had."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.3, 5, 0.01)
    plain = {"constant": 0.3, "zero": 0.0}.get(rate, schedule)
    optimizer = keras.optimizers.SGD(plain)
    model, kernel, data, gradient = regression(optimizer)
    w, a = np.array(kernel), anchor(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=8, epochs=4, shuffle=False, verbose=0)
    rates = [float(schedule(i)) if rate == "schedule" else plain for i in range(4)]
    np.testing.assert_allclose(kernel, descend(w, a, gradient, rates), atol=1e-5)


def test_accumulated_gradients_take_one_proximal_step():
    """Two steps of four examples end where one of eight does."""
    optimizer = keras.optimizers.SGD(0.3, gradient_accumulation_steps=2)
    model, kernel, data, gradient = regression(optimizer)
    w, a = np.array(kernel), anchor(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=4, epochs=3, shuffle=False, verbose=0)
    expected = descend(w, a, gradient, [0.3] * 3)
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


def test_the_proximal_step_solves_its_problem():
    """argmin t / 2 (w - A)^2 + (w - W)^2 / 2: its derivative is zero."""
    optimizer = keras.optimizers.SGD(0.2)
    _, kernel, _, _ = regression(optimizer)
    w, a = np.array(kernel), anchor(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    pulled = np.array(kernel.constraint(kernel))
    np.testing.assert_allclose(0.2 * RHO * (pulled - a) + pulled - w, 0, atol=1e-6)


def test_each_kernel_has_an_anchor_of_its_own():
    optimizer = keras.optimizers.SGD(1.0)
    kernels = [keras.Variable(np.zeros(shape)) for shape in ((2, 3), (4,))]
    optimizer.build(kernels)
    step = AdmmStep(kernels)
    step.attach(optimizer)
    anchors = [anchor(kernel.shape) for kernel in kernels]
    step.assign(1.0, anchors)
    for kernel, a in zip(kernels, anchors, strict=True):
        np.testing.assert_allclose(kernel.constraint(kernel), a / 2, rtol=1e-6)
    step.assign(3.0)  # the anchors stay
    for kernel, a in zip(kernels, anchors, strict=True):
        np.testing.assert_allclose(kernel.constraint(kernel), a * 3 / 4, rtol=1e-6)


def test_the_layers_own_constraint_comes_first():
    optimizer = keras.optimizers.SGD(0.3)
    own = keras.constraints.NonNeg()
    model, kernel, data, gradient = regression(optimizer, own)
    w, a = np.array(kernel), anchor(kernel.shape)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [a])
    model.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0)
    expected = descend(w, a, gradient, [0.3] * 3, constraint=lambda w: np.maximum(w, 0))
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


@pytest.mark.parametrize("state", ["new", "attached", "detached", "attached again"])
def test_it_does_nothing_unless_it_is_attached_and_strong(state):
    optimizer = keras.optimizers.SGD(0.3)
    model, kernel, data, gradient = regression(optimizer)
    w = np.array(kernel)
    step = AdmmStep([kernel])
    if state != "new":
        step.attach(optimizer)
    if state.startswith(("detached", "attached again")):
        step.assign(RHO, [anchor(kernel.shape)])
        step.detach() if state == "detached" else step.attach(optimizer)
    model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(kernel, descend(w, 0, gradient, [0.3] * 2, 0), atol=1e-5)


def test_another_optimizer_takes_it_from_the_first():
    kernel = keras.Variable(np.zeros((2, 3)))
    first, second = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.5)
    before = [len(first.variables), len(second.variables)]
    step = AdmmStep([kernel])
    step.attach(first)
    step.attach(second)
    assert [len(first.variables), len(second.variables)] == [before[0], before[1] + 2]
    step.assign(2.0, [anchor((2, 3))])
    np.testing.assert_allclose(
        kernel.constraint(kernel), anchor((2, 3)) / 2, rtol=1e-6
    )  # t = 0.5 * 2


def test_a_model_saved_after_detach_loads_without_warnings(tmp_path):
    optimizer = keras.optimizers.SGD(0.3, momentum=0.9)
    model, kernel, data, _ = regression(optimizer)
    step = AdmmStep([kernel])
    step.attach(optimizer)
    step.assign(RHO, [anchor(kernel.shape)])
    model.fit(*data, batch_size=8, verbose=0)
    step.detach()
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as an optimizer that is not loaded
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
