"""Loss of distillation, against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.core.distillation.soft_loss import (
    SoftLoss,
    kind_of_output,
    output_activations,
)

RNG = np.random.default_rng(0)
TEACHER, STUDENT = RNG.normal(0, 3, (2, 6, 5)).astype("float32")
LOGITS = (None, None)


def softmax(z):
    e = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.float64(z)))


def divergence(p, q):
    """KL(softmax(p) || softmax(q)) of logits, per sample."""
    p, q = softmax(p), softmax(q)
    return np.sum(p * np.log(p / q), -1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_class_scores_have_the_divergence_of_softened_softmaxes(temperature):
    loss = SoftLoss("categorical", LOGITS, temperature)
    expected = temperature**2 * divergence(TEACHER / temperature, STUDENT / temperature)
    np.testing.assert_allclose(loss(TEACHER, STUDENT), expected.mean(), rtol=1e-5)
    assert abs(float(loss(TEACHER, TEACHER))) < 1e-6


@pytest.mark.parametrize(
    "activations", [("softmax", "softmax"), ("softmax", None), (None, "softmax")]
)
@pytest.mark.parametrize("gap", [1.0, 10.0])
def test_probabilities_give_the_loss_of_their_logits(activations, gap):
    """Also where the largest is one but for rounding, and the least about 1e-30."""
    logits = [gap * TEACHER, gap * STUDENT]
    outputs = [
        ops.softmax(z) if activation else z
        for z, activation in zip(logits, activations, strict=True)
    ]
    expected = 16 * divergence(logits[0] / 4, logits[1] / 4).mean()
    received = SoftLoss("categorical", activations, 4.0)(*outputs)
    np.testing.assert_allclose(received, expected, rtol=1e-4)


def test_probabilities_of_zero_give_a_finite_loss():
    certain = np.eye(5, dtype="float32")[:3]
    loss = SoftLoss("categorical", ("softmax", "softmax"), 4.0)
    assert np.isfinite(loss(certain, certain[::-1]))
    loss = SoftLoss("binary", ("sigmoid", "sigmoid"), 4.0)
    assert np.isfinite(loss(certain, certain[::-1]))


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_binary_scores_have_the_mean_divergence_of_two_classes(activation):
    outputs = (TEACHER, STUDENT)
    if activation:
        outputs = [ops.sigmoid(z) for z in outputs]
    p, q = sigmoid(TEACHER / 2), sigmoid(STUDENT / 2)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    received = SoftLoss("binary", (activation, activation), 2.0)(*outputs)
    np.testing.assert_allclose(received, 4 * expected.mean(), rtol=1e-4)


def test_values_have_the_mean_squared_error_whatever_the_temperature():
    expected = np.mean((TEACHER - STUDENT) ** 2)
    for temperature in (1.0, 9.0):
        received = SoftLoss("values", LOGITS, temperature)(TEACHER, STUDENT)
        np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_values_without_a_last_axis_have_one_error_a_sample():
    weights = np.arange(6, dtype="float32")
    received = SoftLoss("values", LOGITS, 1.0)(TEACHER[:, 0], STUDENT[:, 0], weights)
    expected = np.mean(weights * (TEACHER - STUDENT)[:, 0] ** 2)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_sample_weights_and_reduction_are_those_of_keras(reduction):
    weights = np.array([0, 1, 2, 0, 3, 1], "float32")
    loss = SoftLoss("categorical", LOGITS, 3.0, reduction)
    expected = np.sum(9 * weights * divergence(TEACHER / 3, STUDENT / 3))
    received = loss(TEACHER, STUDENT, weights)
    mean = reduction == "sum_over_batch_size"
    np.testing.assert_allclose(received, expected / (6 if mean else 1), rtol=1e-5)


def ends_in(*tail):
    inputs = x = keras.Input((4, 4))
    for layer in tail:
        x = layer(x)
    return keras.Model(inputs, x)


ENDS = {
    "dense": (lambda: ends_in(layers.Dense(3)), None),
    "dense, softmax": (lambda: ends_in(layers.Dense(3, "softmax")), "softmax"),
    "dense, sigmoid": (lambda: ends_in(layers.Dense(3, "sigmoid")), "sigmoid"),
    "dense, relu": (lambda: ends_in(layers.Dense(3, "relu")), None),
    "activation": (
        lambda: ends_in(layers.Dense(3), layers.Activation("softmax")),
        "softmax",
    ),
    "softmax layer": (lambda: ends_in(layers.Dense(3), layers.Softmax()), "softmax"),
    "softmax of rows": (lambda: ends_in(layers.Softmax(axis=1)), None),
    "operation": (lambda: ends_in(layers.Dense(3), ops.softmax), "softmax"),
    "linear at the end": (
        lambda: ends_in(layers.Dense(3, "softmax"), layers.Activation("linear")),
        "softmax",
    ),
    "softmax before a layer": (
        lambda: ends_in(layers.Dense(3, "softmax"), layers.Dense(3)),
        None,
    ),
    "nested": (lambda: ends_in(ends_in(layers.Dense(3, "softmax"))), "softmax"),
    "sequential": (
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")]),
        "softmax",
    ),
    "input alone": (lambda: ends_in(layers.Identity()), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_last_activation_of_an_output(name):
    make, expected = ENDS[name]
    assert output_activations(make()) == [expected]


def test_last_activations_of_outputs_in_flat_order():
    inputs = keras.Input((4,))
    outputs = {"b": layers.Dense(3, "softmax")(inputs), "a": layers.Dense(2)(inputs)}
    assert output_activations(keras.Model(inputs, outputs)) == [None, "softmax"]


CROSSENTROPY, BINARY = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)


@pytest.mark.parametrize(
    "activation, loss, expected",
    [
        ("softmax", CROSSENTROPY(), ("categorical", "softmax")),
        ("sigmoid", BINARY(), ("binary", "sigmoid")),
        (None, CROSSENTROPY(from_logits=True), ("categorical", None)),
        (None, BINARY(from_logits=True), ("binary", None)),
        (None, CROSSENTROPY(), ("values", None)),
        (None, "mse", ("values", None)),
        (None, keras.losses.mean_squared_error, ("values", None)),
    ],
)
def test_kind_of_an_output_follows_from_its_activation_and_then_its_loss(
    activation, loss, expected
):
    assert kind_of_output(activation, loss) == expected
