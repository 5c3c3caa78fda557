"""Scales and biases of bfloat16: what moves in a student, and what does not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.graph.graph import Graph
from tfcompress.graph.rounded_floats import (
    affine_norm,
    copy_affine,
    lone_norms,
    move_statistics,
    round_floats,
    round_trained_floats,
    to_bfloat16,
)
from tfcompress.layers import PackedDense, QuantConv2D, QuantDense, QuantDepthwiseConv2D
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
        if variable.path.split("/")[-1] in ("bias", "beta", "gamma", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
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


def test_frozen_layers_stay():
    model = student()
    frozen = [model.get_layer(name) for name in ("frozen_norm", "frozen")]
    before = [x for layer in frozen for x in layer.get_weights()]
    move_statistics(model)
    round_trained_floats(model)
    after = [x for layer in frozen for x in layer.get_weights()]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(low_bits(model.get_layer("head").bias), 0)


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


def test_only_folded_scales_are_rounded():
    packed = PackedDense(3, kernel_bits=4)
    packed.build((None, 2))
    packed.bias.assign([0.1, 0.2, 0.3])
    scale = np.float32([[0.1, 0.2, 1e-45]])
    packed.set_kernel(np.ones((2, 3)), scale)
    round_floats(packed, has_norm=False)
    np.testing.assert_array_equal(packed.kernel_scale, scale)
    np.testing.assert_array_equal(low_bits(packed.bias), 0)
    round_floats(packed, has_norm=True)
    np.testing.assert_array_equal(low_bits(packed.kernel_scale)[0, :2], 0)
    assert np.asarray(packed.kernel_scale)[0, 2] > 0  # a scale of zero is no scale


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
    norm.set_weights([rng.uniform(0.1, 2, x.shape) for x in norm.get_weights()])
    new = affine_norm(norm)
    new.build((None, 4, 4, 6))
    copy_affine(norm, new)
    images = rng.normal(size=(8, 4, 4, 6)).astype("float32")
    expected, received = norm(images), new(images)
    np.testing.assert_allclose(received, expected, atol=0.02)
    for values in new.get_weights():
        np.testing.assert_array_equal(low_bits(values), 0)
    move_statistics(model)
    copy_affine(norm, new)
    np.testing.assert_allclose(new(images), norm(images), atol=1e-5)
