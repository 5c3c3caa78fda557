"""Integer files as litert-quantizer makes them."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfcompress.litert import float_tflite, predict
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.proof.samples import Samples

pytest.importorskip("litert_quantizer")


def test_quantized_tflite_has_float_ends_and_keeps_large_kernels(capsys):
    """litert-quantizer writes buffers of a few kilobytes after the flatbuffer."""
    inputs = keras.Input((8, 8, 32))
    model = keras.Model(inputs, kl.Conv2D(32, 3, padding="same")(inputs))
    samples = np.random.default_rng(0).normal(size=(50, 8, 8, 32)).astype("float32")
    content = quantized_tflite(float_tflite(model), Samples(model, samples))
    assert capsys.readouterr().out == ""
    outputs, expected = predict(content, samples), model.predict(samples, verbose=0)
    assert np.std(outputs - expected) < 0.03 * np.std(expected)


@pytest.mark.parametrize("read", [[1], [0, 2], [2, 1, 0]], ids=str)
def test_quantized_tflite_takes_operators_whose_results_are_partly_unread(read):
    inputs = keras.Input((4, 12))
    parts = keras.ops.split(kl.Dense(12)(inputs), 3, axis=-1)
    x = keras.ops.tanh(keras.ops.concatenate([parts[i] for i in read], axis=-1))
    model = keras.Model(inputs, kl.Dense(5)(x))
    samples = np.random.default_rng(0).normal(size=(50, 4, 12)).astype("float32")
    content = quantized_tflite(float_tflite(model), Samples(model, samples))
    outputs, expected = predict(content, samples), model.predict(samples, verbose=0)
    assert np.std(outputs - expected) < 0.03 * np.std(expected)


def test_quantized_tflite_represents_the_largest_value_of_all_samples():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, kl.Dense(4)(inputs))
    samples = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")
    samples[7] *= 20
    content = quantized_tflite(float_tflite(model), Samples(model, samples))
    outputs, expected = predict(content, samples), model.predict(samples, verbose=0)
    assert np.abs(outputs - expected).max() < 0.02 * np.abs(expected).max()


def test_quantized_tflite_takes_samples_of_several_sizes():
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, kl.Conv1D(4, 3)(inputs))
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(40, n, 8)).astype("float32") for n in (6, 9)]
    parts[1] *= 10  # the range is that of both
    batches = [[part] for part in parts]
    content = quantized_tflite(float_tflite(model), batches)
    for part in parts:
        outputs, expected = predict(content, part), model.predict(part, verbose=0)
        assert np.abs(outputs - expected).max() < 1.0


def test_quantized_tflite_refuses_samples_that_are_not_finite_in_their_own_words():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    samples = np.zeros((200, 2))
    samples[150, 0] = np.nan
    with pytest.raises(ValueError, match="^`verify` should hold finite"):
        quantized_tflite(float_tflite(model), Samples(model, samples))
