"""Quantizers of weights with a given codebook: codes, zeros and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.quantizers import Codebook

SHAPES = {
    "conv": ((3, 3, 5, 7), (-1,)),
    "depthwise": ((3, 3, 5, 2), (-2, -1)),
    "dense": ((20, 6), (-1,)),
}
shapes = pytest.mark.parametrize("shape, axes", SHAPES.values(), ids=SHAPES)
# (bits of an index, levels, bits of the largest level)
LEVELS = {
    "ternary": (2, [-1, 0, 1], 2),
    "3 bits": (3, range(-3, 4), 3),
    "8 bits": (8, range(-127, 128), 8),
    "clusters": (2, [-100, -31, 0, 7, 90], 8),
    "one side": (1, [0, 5, 60], 7),
    "zero alone": (1, [0], 2),
}
codebooks = pytest.mark.parametrize(
    "width, levels, bits", LEVELS.values(), ids=list(LEVELS)
)
STEP = 0.037


def kernel(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(shape, axes=(-1,)):
    quantizer = Codebook()
    quantizer.channel_axes = axes
    quantizer.build(shape)
    return quantizer


def gradient(quantizer, w, upstream):
    x = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(quantizer(x) * upstream)
    return np.array(tape.gradient(loss, x))


@shapes
@codebooks
def test_codebook_codes_times_scale_equal_the_quantized_kernel(
    shape, axes, width, levels, bits
):
    quantizer = built(shape, axes)
    w = kernel(shape)
    mask = np.abs(w) > 0.5
    quantizer.set_codebook(width, levels, STEP, mask)
    codes, scale = quantizer.encode(w)
    assert codes.dtype == np.int8 and codes.shape == shape
    assert set(np.unique(codes)) <= set(levels) and not codes[~mask].any()
    expected = [n if i - len(shape) in axes else 1 for i, n in enumerate(shape)]
    assert list(scale.shape) == expected and scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.float32(STEP))
    np.testing.assert_array_equal(quantizer(w), codes * scale)
    assert (quantizer.bits, int(quantizer.width)) == (bits, width)


@codebooks
def test_codebook_rounds_weights_to_the_nearest_level(width, levels, bits):
    quantizer = built((8, 80))
    w = np.linspace(-6, 6, 640, dtype="float32").reshape(8, 80)
    quantizer.set_codebook(width, levels, STEP, np.ones(w.shape))
    levels = np.array(levels)
    positions = np.clip(np.round(w / np.float32(STEP)), -127, 127)
    distances = np.abs(positions[..., None] - levels)
    codes, _ = quantizer.encode(w)
    received = np.abs(positions - codes)
    np.testing.assert_array_equal(received, distances.min(axis=-1))


@codebooks
def test_codebook_gradient_is_zero_for_masked_weights_and_else_straight_through(
    width, levels, bits
):
    w, upstream = kernel((20, 6)), kernel((20, 6), seed=1)
    quantizer = built(w.shape)
    mask = np.abs(w) > 0.5
    quantizer.set_codebook(width, levels, STEP, mask)
    np.testing.assert_array_equal(gradient(quantizer, w, upstream), upstream * mask)


def test_codebook_passes_a_float_kernel_unchanged_while_it_does_not_quantize():
    w, upstream = kernel((20, 6)), kernel((20, 6), seed=1)
    quantizer = built(w.shape)
    quantizer.set_codebook(2, [-1, 0, 1], STEP, np.abs(w) > 0.5)
    quantizer.quantizes.assign(0.0)
    np.testing.assert_array_equal(quantizer(w), w)
    np.testing.assert_array_equal(gradient(quantizer, w, upstream), upstream)
    # The codes are the same while the float kernel is used.
    assert set(np.unique(quantizer.encode(w)[0])) == {-1, 0, 1}


def test_new_codebook_is_the_8_bit_grid_and_unfinished():
    quantizer = built((4, 3))
    assert (quantizer.bits, int(quantizer.width)) == (8, 8)
    w = np.array([[-200.0, -3.2, 0.4]] * 4, "float32")
    np.testing.assert_array_equal(quantizer(w), [[-127.0, -3.0, 0.0]] * 4)
    assert "zeros and bits has not ended" in quantizer.unfinished()
    quantizer.frozen.assign(1.0)
    assert quantizer.unfinished() is None
    assert not quantizer.trainable_variables


def test_codebook_candidates_are_known_before_build():
    assert Codebook().candidates == (2, 3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_codebook_computes_codes_in_float32_under_mixed_precision(policy):
    layer = QuantDense(8, kernel_quantizer=Codebook(), dtype=policy)
    layer.build((None, 64))
    w = kernel((64, 8))
    layer.latent_kernel.assign(w)
    step = np.float32(1 / 127.3)  # not a 16-bit float
    layer.kernel_quantizer.set_codebook(8, range(-127, 128), step, np.abs(w) > 0.5)
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    np.testing.assert_array_equal(scale, step)
    expected = tf.cast(codes * scale, layer.compute_dtype)
    x = np.eye(64, dtype="float32")
    np.testing.assert_array_equal(layer(x, training=True), expected)


@pytest.mark.parametrize("layer, shape, scale", [
    (QuantConv2D(4, 3, kernel_quantizer=Codebook()), (None, 8, 8, 5), (1, 1, 1, 4)),
    (QuantDepthwiseConv2D(3, depth_multiplier=2, kernel_quantizer=Codebook()),
     (None, 8, 8, 5), (1, 1, 5, 2)),
])  # fmt: skip
def test_codebook_scales_have_the_shape_of_the_layers_channels(layer, shape, scale):
    layer.build(shape)
    assert layer.kernel_quantizer.encode(layer.latent_kernel)[1].shape == scale


def test_saved_layers_restore_codebook_mask_and_admm_variables(tmp_path):
    inputs = keras.Input((20,))
    layer = QuantDense(6, kernel_quantizer=Codebook())
    model = keras.Model(inputs, layer(inputs))
    w = kernel((20, 6))
    quantizer = layer.kernel_quantizer
    quantizer.set_codebook(2, [-100, -31, 0, 7, 90], 0.02, np.abs(w) > 0.5)
    quantizer.anchor.assign(w)
    quantizer.dual.assign(-w)
    quantizer.frozen.assign(1.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    restored = loaded.layers[-1].kernel_quantizer
    assert len(restored.weights) == 8
    for a, b in zip(quantizer.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.name)
    x = kernel((5, 20))
    np.testing.assert_array_equal(loaded(x), model(x))
