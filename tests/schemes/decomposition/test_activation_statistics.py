"""Moments of factorized layers, against those of the tensors in the graph."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.schemes.decomposition.activation_statistics import MeasureMoments

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(2, 3, (4, 8, 6, 3)).astype("float32") for _ in range(3)]


def make_student(batch_norm="behind"):
    """Strides, "same" and "valid", one layer on two inputs, an activation built in."""
    layers = keras.layers
    x = inputs = keras.Input((8, 6, 3))
    x = layers.Conv2D(5, 3, strides=2, padding="same", name="strided")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    shared = layers.Conv2D(5, 3, padding="same", name="shared")
    x = shared(shared(x))
    x = layers.Flatten()(x)
    x = layers.Dense(7, activation="relu", name="hidden")(x)
    outputs = layers.Dense(4, name="head")(x)
    scheme = tfc.Decomposition(macs="1/2", start="identity", batch_norm=batch_norm)
    return tfc.compress(keras.Model(inputs, outputs), scheme)


def covariance(values):
    values = values.reshape(-1, values.shape[-1])
    return np.cov(values, rowvar=False, bias=True)


def probe(student, name, of):
    layer = student.get_layer(name)
    nodes = range(len(layer._inbound_nodes))
    tensors = [layer._inbound_nodes[i] for i in nodes]
    tensors = [getattr(node, f"{of}_tensors")[0] for node in tensors]
    model = keras.Model(student.inputs, tensors)
    values = model.predict(np.concatenate(BATCHES), verbose=0)
    return values if isinstance(values, list) else [values]


@pytest.mark.parametrize("name", ["strided", "hidden", "head"])
def test_they_are_those_of_the_inputs_and_of_what_the_basis_makes(name):
    student = make_student()
    layer = student.get_layer(name)
    moments = MeasureMoments(student, student.rank_space.layers)(BATCHES)[name]
    (inputs,) = probe(student, name, "input")
    axes = tuple(range(inputs.ndim - 1))
    np.testing.assert_allclose(moments.inputs, inputs.var(axis=axes), rtol=1e-3)
    layer.activation = None
    (outputs,) = probe(student, name, "output")
    coefficients = np.array(layer.coefficients)
    expected = coefficients.T @ moments.hidden @ coefficients
    np.testing.assert_allclose(expected, covariance(outputs), rtol=1e-3, atol=1e-4)


def test_a_shared_layer_is_measured_over_all_of_its_calls():
    student = make_student()
    moments = MeasureMoments(student, student.rank_space.layers)(BATCHES)["shared"]
    inputs = np.concatenate(probe(student, "shared", "input"))
    np.testing.assert_allclose(moments.inputs, inputs.var(axis=(0, 1, 2)), rtol=1e-3)


def test_with_normalization_between_the_hidden_are_normalized():
    student = make_student(batch_norm="between")
    layer = student.get_layer("strided")
    layer.normalization.moving_variance.assign(np.arange(1.0, 6.0))
    moments = MeasureMoments(student, student.rank_space.layers)(BATCHES)["strided"]
    layer.normalization.moving_variance.assign(4 * np.arange(1.0, 6.0))
    smaller = MeasureMoments(student, student.rank_space.layers)(BATCHES)["strided"]
    np.testing.assert_allclose(moments.hidden, 4 * smaller.hidden, rtol=0.01)


def test_layers_are_not_observed_afterwards():
    student = make_student()
    layers = student.rank_space.layers
    MeasureMoments(student, layers)(BATCHES)
    assert all(layer.observer is None for layer in layers.values())


def test_infinite_activations_are_refused_with_the_layer():
    student = make_student()
    measure = MeasureMoments(student, student.rank_space.layers)
    with pytest.raises(ValueError, match="Finite activations .* 'strided'"):
        measure([BATCHES[0] * np.inf])


def test_channels_that_add_nothing_are_the_first_to_go():
    """Of two that a layer writes, next to others that the reader has from elsewhere."""
    inputs = keras.Input((8, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="a")(inputs)
    y = keras.layers.Conv2D(4, 3, name="b")(inputs)
    x = keras.layers.Concatenate()([x, y])
    outputs = keras.layers.Conv2D(4, 1, name="reader")(x)
    model = keras.Model(inputs, outputs)
    kernel = np.array(model.get_layer("reader").kernel)
    kernel[:, :, 1] = 1e-4  # read, but hardly
    model.get_layer("reader").kernel.assign(kernel)
    kernel = np.array(model.get_layer("b").kernel)
    kernel[..., 2] = 1e-4  # large in "reader", but hardly ever different from 0
    model.get_layer("b").kernel.assign(kernel)
    student = tfc.compress(model, tfc.Decomposition(macs="1/2"))
    space = student.rank_space
    scores = space.scores(MeasureMoments(student, space.layers)(BATCHES)).classes
    written = space.channels.written
    least = {written["a"][1], written["b"][2]}
    assert set(np.argsort(scores)[:2]) == least
    assert scores[sorted(least)].max() < 0.01 * np.sort(scores)[2]
    # Each of the two is not all that the reader has.
    assert np.isfinite(scores[np.concatenate([written["a"], written["b"]])]).all()
