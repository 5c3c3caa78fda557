"""Conversion of packed models to float files."""

import os

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfcompress.layers import PackedDense, QuantizeActivation
from tfcompress.litert import float_tflite, predict
from tfcompress.litert.convert import captured_stderr
from tfcompress.litert.flatbuffer import operator_name, read


def test_float_file_predicts_like_the_packed_model(digit_model, images):
    content = float_tflite(digit_model)
    expected = digit_model.predict(images, verbose=0)
    np.testing.assert_allclose(predict(content, images), expected, atol=1e-5)


def test_float_file_has_float_kernels_and_no_quantized_tensors(digit_model):
    content = float_tflite(digit_model)
    parameters = 3 * 3 * 6 + 3 * 3 * 6 + 3 * 3 * 6 * 5 + 5 * 10
    assert len(content) > 4 * parameters
    assert not any(t.quantization.scale is not None for t in tensors(content))


def tensors(content):
    return read(content).subgraphs[0].tensors


def test_captured_stderr_returns_the_log_and_restores_stderr(capfd):
    with captured_stderr() as log:
        os.write(2, b"converter at work")
        assert log() == "converter at work"
    os.write(2, b"back to normal")
    assert capfd.readouterr().err == "back to normal"


def test_float_tflite_leaves_the_model_unchanged(digit_model):
    before = digit_model.get_config(), digit_model.get_weights()
    float_tflite(digit_model)
    after = digit_model.get_config(), digit_model.get_weights()
    assert before[0] == after[0]
    assert all(map(np.array_equal, before[1], after[1]))
    # One node each: the layers were not called on anything new.
    assert digit_model.get_layer("head").output.shape == (None, 10)


def test_float_tflite_keeps_the_statistics_of_adapted_normalization():
    norm = kl.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3, 2, (100, 4)))
    dense = PackedDense(2, kernel_bits=2)
    model = keras.Sequential([keras.Input((4,)), norm, dense])
    dense.set_kernel(np.eye(4, 2), np.ones((1, 2)))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(predict(float_tflite(model), x), expected, atol=1e-6)


def test_float_tflite_refuses_operations_that_litert_lacks():
    inputs = keras.Input((4,))
    outputs = keras.ops.linalg.det(kl.Reshape((2, 2))(inputs))
    model = keras.Model(inputs, outputs, name="determinant")
    with pytest.raises(ValueError, match="'determinant' could not be converted"):
        float_tflite(model)


def test_float_tflite_refuses_other_backends(digit_model, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="Received: jax"):
        float_tflite(digit_model)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_quantized_activations_round_half_to_even_without_flex_operators(bits, signed):
    inputs = keras.Input((600,))
    layer = QuantizeActivation(bits, signed)
    model = keras.Model(inputs, layer(inputs))
    layer.set_scale(1 / 8)  # every tie is exact
    content = float_tflite(model)
    graph = read(content)
    names = {operator_name(graph, op) for op in graph.subgraphs[0].operators}
    assert names <= {"MUL", "DIV", "MINIMUM", "MAXIMUM", "RELU", "ROUND"}

    x = np.arange(-300, 300, dtype="float32")[None] / 16
    levels = np.clip(np.round(x * 8), layer.low, layer.high)
    np.testing.assert_array_equal(predict(content, x), levels / 8)
