"""Layer that quantizes activations in inference."""

import keras
import numpy as np
import pytest

from tfcompress.graph.rebuild import clone_layer
from tfcompress.layers import QuantizeActivation

GRIDS = [(bits, signed) for bits in range(2, 9) for signed in (False, True)]


def model_of(bits, signed, scale, **config):
    layer = QuantizeActivation(bits, signed, **config)
    inputs = keras.Input((40,))
    model = keras.Model(inputs, layer(inputs))
    layer.set_scale(scale)
    return model, layer


@pytest.mark.parametrize("bits, signed", GRIDS)
def test_quantize_activation_rounds_to_its_levels_and_reloads(bits, signed, tmp_path):
    model, _ = model_of(bits, signed, 0.3)
    low, high = (
        (-(2 ** (bits - 1)) + (bits < 8), 2 ** (bits - 1) - 1)
        if signed
        else (0, 2**bits - 1)
    )
    x = np.random.default_rng(0).normal(scale=2**bits / 8, size=(50, 40))
    x = x.astype("float32")
    levels = np.clip(np.round(x / np.float32(0.3)), low, high).astype("float32")
    np.testing.assert_array_equal(model(x), levels * np.float32(0.3))

    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored(x), model(x))


def test_quantize_activation_rounds_ties_to_even():
    model, _ = model_of(4, True, 0.25)
    x = np.zeros((1, 40), "float32")
    x[0, :6] = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 99]) / 4
    np.testing.assert_array_equal(model(x)[0, :6] * 4, [0, 2, 2, 0, -2, 7])


def test_quantize_activation_computes_in_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, layer = model_of(8, False, 0.01)
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer.compute_dtype == model.output.dtype == "float32"
    x = np.full((1, 40), 1.28, "float32")  # 1.28125 in bfloat16
    np.testing.assert_array_equal(model(x), np.float32(128) * np.float32(0.01) + 0 * x)


def test_quantize_activation_is_not_trainable_and_can_be_cloned():
    model, layer = model_of(3, True, 0.5)
    assert not model.trainable_variables
    clone = clone_layer(layer)
    assert (clone.bits, clone.signed, clone.low, clone.high) == (3, True, -3, 3)
    assert not clone.trainable


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_scale_that_is_not_positive_and_finite_is_refused(scale):
    _, layer = model_of(4, False, 0.5)
    with pytest.raises(ValueError, match="positive and finite. Received"):
        layer.set_scale(scale)
    assert float(layer.scale) == 0.5


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_quantize_activation_refuses_bits_outside_of_2_to_8(bits):
    with pytest.raises(ValueError, match="from 2 to 8"):
        QuantizeActivation(bits)
