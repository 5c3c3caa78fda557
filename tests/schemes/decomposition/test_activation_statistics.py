"""Statistics of factorized layers, against those of the tensors in the graph."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.schemes.decomposition.activation_statistics import (
    MeasureActivations,
)

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(2, 3, (4, 8, 6, 3)).astype("float32") for _ in range(3)]


def make_student(batch_norm="after"):
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
    with student.training_run.own_pass():
        batches = [keras.tree.flatten(model([x], training=True)) for x in BATCHES]
    return [np.concatenate(calls) for calls in zip(*batches, strict=True)]


def measure(student, batches=BATCHES):
    recalibrate = Recalibration(student, batches)
    return MeasureActivations(recalibrate, student.rank_space.layers)()


@pytest.fixture(scope="module")
def measured():
    """A student and the statistics of its layers."""
    student = make_student()
    return student, measure(student)


@pytest.mark.parametrize("name", ["strided", "hidden", "head"])
def test_statistics_are_those_of_inputs_and_outputs(measured, name, monkeypatch):
    student, statistics = measured
    layer = student.get_layer(name)
    (inputs,) = probe(student, name, "input")
    variances = inputs.var(axis=tuple(range(inputs.ndim - 1)))
    np.testing.assert_allclose(statistics[name].input_variances, variances, rtol=1e-3)
    monkeypatch.setattr(layer, "activation", None)
    (outputs,) = probe(student, name, "output")
    coefficients = np.array(layer.coefficients)
    received = coefficients.T @ statistics[name].hidden_covariance @ coefficients
    np.testing.assert_allclose(received, covariance(outputs), rtol=1e-3, atol=1e-4)


def test_a_shared_layer_is_measured_over_all_of_its_calls(measured):
    student, statistics = measured
    inputs = np.concatenate(probe(student, "shared", "input"))
    np.testing.assert_allclose(
        statistics["shared"].input_variances, inputs.var(axis=(0, 1, 2)), rtol=1e-3
    )


def test_hidden_statistics_include_the_normalization_between():
    """By the statistics of the batch: the moving ones may be far from them."""
    student = make_student(batch_norm="between")
    norm = student.get_layer("strided").normalization
    norm.moving_variance.assign(np.arange(1.0, 6.0))
    hidden = measure(student)["strided"].hidden_covariance
    np.testing.assert_allclose(np.diag(hidden), 1.0, rtol=0.01)
    np.testing.assert_array_equal(norm.moving_variance, np.arange(1.0, 6.0))


@pytest.mark.parametrize("batch_norm", ["after", "between"])
def test_statistics_do_not_depend_on_moving_ones(batch_norm):
    student = make_student(batch_norm)
    before = measure(student)
    for layer in student._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 3.0)
            layer.moving_variance.assign(0.01 * layer.moving_variance)
    for name, after in measure(student).items():
        for one, other in zip(
            vars(before[name]).values(), vars(after).values(), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_no_layer_has_an_observer_after_measuring(measured):
    student, _ = measured
    layers = student.rank_space.layers.values()
    assert all(layer.observer is None for layer in layers)


def test_infinite_activations_raise_with_the_name_of_the_layer(measured):
    student, _ = measured
    with pytest.raises(ValueError, match="Finite activations .* 'strided'"):
        measure(student, [BATCHES[0] * np.inf])
