"""Scales and offsets of bfloat16: which move in a student, and which do not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.graph.graph import Graph
from tfcompress.graph.rounded_norms import (
    affine_norm,
    copy_affine,
    lone_norms,
    move_statistics,
    snapped,
    to_bfloat16,
)
from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.layers.batch_norm import affine
from tfcompress.quantizers import Codebook

LOW_BITS = 0xFFFF


def student():
    """Layers with and without batch normalization, one of them frozen."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 3))
    x = QuantConv2D(8, 3, kernel_quantizer=Codebook(), name="biased")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = QuantDepthwiseConv2D(
        3, depth_multiplier=2, use_bias=False, kernel_quantizer=Codebook()
    )(x)
    x = layers.BatchNormalization(scale=False, name="plain_norm")(x)
    x = QuantConv2D(4, 1, kernel_quantizer=Codebook())(x)
    x = layers.BatchNormalization(name="frozen_norm", trainable=False)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = QuantDense(5, kernel_quantizer=Codebook(), name="head")(x)
    x = QuantDense(2, kernel_quantizer=Codebook(), trainable=False, name="frozen")(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.split("/")[-1] in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
        elif variable.path.endswith("gamma"):
            variable.assign(rng.uniform(-2, -1, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.1, 3, variable.shape))
        elif variable.path.endswith("step"):
            variable.assign(0.01)
    return model


def low_bits(x):
    """Bits of float32 values that bfloat16 has not."""
    return np.ascontiguousarray(ops.convert_to_numpy(x), "float32").view("uint32") & (
        LOW_BITS
    )


def test_rounding_is_to_the_nearest_value():
    x = np.float32([0, 1, -1.001, 1 + 1 / 256, 3e38, 1e-30])
    np.testing.assert_array_equal(low_bits(to_bfloat16(x)), 0)
    np.testing.assert_allclose(to_bfloat16(x), x, rtol=1 / 256)


def test_moved_statistics_fold_into_values_of_bfloat16():
    model = student()
    images = np.random.default_rng(1).normal(size=(16, 6, 6, 3)).astype("float32")
    before = model.predict(images, verbose=0)
    move_statistics(model)
    after = model.predict(images, verbose=0)
    assert 0 < np.abs(after - before).max() < 0.02 * np.abs(before).max()
    bias = ops.convert_to_numpy(model.get_layer("biased").bias)
    for name in ("norm", "plain_norm"):
        multiplier, offset = affine(model.get_layer(name))
        scales = np.abs(multiplier).astype("float32") * np.float32(0.01)
        offset = offset + multiplier * bias if name == "norm" else offset
        np.testing.assert_allclose(to_bfloat16(scales), scales, rtol=1e-6)
        offset = offset.astype("float32")
        np.testing.assert_allclose(to_bfloat16(offset), offset, rtol=1e-4)
    again = model.predict(images, verbose=0)
    move_statistics(model)
    np.testing.assert_allclose(model.predict(images, verbose=0), again, atol=1e-5)


def test_no_other_layer_moves():
    model = student()
    others = [x for x in model.layers if x.name not in ("norm", "plain_norm")]
    before = [x for layer in others for x in layer.get_weights()]
    move_statistics(model)
    after = [x for layer in others for x in layer.get_weights()]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_offsets_stay():
    """A step of bfloat16 at 1,000 deviations is as large as a deviation."""
    model = student()
    norm = model.get_layer("norm")
    variance = np.full(8, 1 - norm.epsilon, "float32")
    means = np.linspace(990, 1010, 8, dtype="float32")
    norm.set_weights([np.ones(8), np.zeros(8), means, variance])
    model.get_layer("biased").bias.assign(np.zeros(8))
    move_statistics(model)
    received = norm(means[None, None, None] + 1)
    np.testing.assert_allclose(received, np.ones(received.shape), atol=0.01)


def test_values_next_to_bfloat16_become_these():
    x = np.float32([0, 0.5, 0.5 + 2**-20, 0.5 + 2**-12, -3 - 2**-18, np.inf])
    expected = np.float32([0, 0.5, 0.5, 0.5 + 2**-12, -3, np.inf])
    np.testing.assert_array_equal(snapped(x), expected)


@pytest.mark.parametrize("gamma", [0.0, -1.3, 1e-30])
@pytest.mark.parametrize("variance", [0.0, 1e-8, 1e30])
def test_unusual_statistics_stay_finite(gamma, variance):
    model = student()
    norm = model.get_layer("norm")
    norm.gamma.assign(np.full(8, gamma))
    norm.moving_variance.assign(np.full(8, variance))
    move_statistics(model)
    for values in norm.get_weights():
        assert np.isfinite(values).all()
    assert (ops.convert_to_numpy(norm.moving_variance) >= 0).all()


@pytest.mark.parametrize("parts", [{}, {"scale": False}, {"center": False}])
def test_normalization_alone_becomes_two_rounded_vectors(parts):
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 1)(x)
    x = layers.BatchNormalization(name="after_a_convolution")(x)
    x = layers.ReLU()(x)
    x = layers.BatchNormalization(name="alone", **parts)(x)
    x = layers.BatchNormalization(name="of_each_batch")(x, training=True)
    model = keras.Model(inputs, x)
    graph = Graph(model)
    assert [norm.name for norm in lone_norms(graph)] == ["alone"]
    norm = model.get_layer("alone")
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 2, x.shape) for x in norm.get_weights()])
    new = affine_norm(norm)
    new.build((None, 4, 4, 6))
    copy_affine(norm, new)
    images = rng.normal(size=(8, 4, 4, 6)).astype("float32")
    np.testing.assert_allclose(new(images), norm(images), atol=1e-5)
    before = norm(images)
    move_statistics(model)
    np.testing.assert_allclose(norm(images), before, atol=0.03)
    copy_affine(norm, new)
    np.testing.assert_allclose(new(images), norm(images), atol=1e-5)
    for values in new.get_weights():
        np.testing.assert_array_equal(low_bits(values), 0)
