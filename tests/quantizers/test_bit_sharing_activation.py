"""Quantizers of activations on nested grids: values, batches and calibration."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import QuantDense
from tfcompress.quantizers import BitSharingActivation
from tfcompress.quantizers.bit_sharing import best_clip

SIGNS = pytest.mark.parametrize("signed", [False, True])


def built(**config):
    quantizer = BitSharingActivation(**config)
    quantizer.build((None, 20))
    return quantizer


def values(samples=50):
    return np.random.default_rng(0).normal(size=(samples, 20)).astype("float32")


@SIGNS
@pytest.mark.parametrize("samples", [1, 7, 50])
@pytest.mark.parametrize("thresholds, bits", [
    ((0.5, 0.5), 8), ((0.5, 1.5), 4), ((1.5, 0.5), 2),
])  # fmt: skip
def test_gated_activations_are_integer_levels_times_one_step(
    samples, thresholds, bits, signed
):
    quantizer = built(signed=signed)
    quantizer.gates.threshold.raw.assign(thresholds)
    quantizer.clip.assign(1.3)
    low, high = quantizer.code_range()
    assert quantizer.bits == bits and high == 2 ** (bits - signed) - 1
    step = quantizer.scale_value()
    assert step == pytest.approx((2.6 if signed else 1.3) / (2**bits - 1))
    x, step = values(samples), np.float32(step)
    expected = np.clip(np.round(x / step), low, high).astype("float32") * step
    # Averages change by 2 % at most, which closes no gate here.
    for training in (False, True):
        np.testing.assert_array_equal(quantizer(x, training=training), expected)


@SIGNS
def test_calibrate_uses_the_recorded_inputs(signed):
    quantizer = built(signed=signed)
    quantizer.record()
    parts = values()[:30], values()[30:]
    for x in parts:
        np.testing.assert_array_equal(quantizer(x), x)
    quantizer.calibrate(np.concatenate([np.array(x) for x in quantizer.recorded()]))
    quantizer.discard()
    assert float(quantizer.calibrated) == 1
    expected = best_clip(values(), 4, signed)
    assert float(quantizer.clip) == pytest.approx(expected)
    assert (np.array(quantizer.gates.errors) != 1).all()
    assert (np.array(quantizer(values())) != values()).any()


def test_calibrate_without_values_changes_nothing():
    quantizer = built()
    quantizer.calibrate(np.zeros(0, "float32"))
    assert float(quantizer.calibrated) == 0 and float(quantizer.clip) == 1


@pytest.mark.parametrize("jit_compile, policy", [
    (False, "mixed_float16"), (False, "mixed_bfloat16"), (True, "float32"),
])  # fmt: skip
def test_activation_clip_and_errors_train_with_any_batch_size(jit_compile, policy):
    inputs = keras.Input((20,))
    layer = QuantDense(2, input_quantizer=BitSharingActivation(), dtype=policy)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    quantizer = layer.input_quantizer
    before = [np.array(v) for v in (quantizer.clip, quantizer.gates.errors)]
    for samples in (1, 20):
        loss = model.train_on_batch(values(samples), np.ones((samples, 2), "float32"))
        assert np.isfinite(loss)
    after = [np.array(v) for v in (quantizer.clip, quantizer.gates.errors)]
    assert all((a != b).all() for a, b in zip(before, after, strict=True))
    assert quantizer(values()).dtype == tf.float32


def test_activation_clip_learns_alike_where_sizes_are_free():
    """A range learns at the rate of the values that it sees, known before or not."""
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    gradients = []
    for size in (8, None):
        quantizer = BitSharingActivation(signed=True)
        quantizer.build((None, size, size, 3))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantizer(x, training=True) ** 2)
        gradients.append(float(tape.gradient(loss, quantizer.clip.value)))
    assert gradients[0] == gradients[1] != 0
