"""Conversion of packed models to float files."""

import os

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.models import stacked
from tfcompress.layers import PackedDense, QuantizeActivation
from tfcompress.litert import float_tflite, predict
from tfcompress.litert.batch import with_free_batch
from tfcompress.litert.convert import captured_stderr
from tfcompress.litert.flatbuffer import operator_name, read
from tfcompress.litert.runtime import Runner


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


LOOPS = {
    "gru": lambda: [kl.GRU(3, return_sequences=True), kl.GRU(3)],
    "lstm in both directions": lambda: [kl.Bidirectional(kl.LSTM(3))],
    "simple": lambda: [kl.SimpleRNN(3)],
    "masked": lambda: [kl.Masking(), kl.LSTM(3)],
}


@pytest.mark.parametrize("steps", [5, None], ids=["known steps", "open steps"])
@pytest.mark.parametrize("name", LOOPS)
def test_loops_over_steps_are_converted_for_one_sample(name, steps):
    model = stacked(keras.Input((steps, 4)), [*LOOPS[name](), kl.Dense(2)])
    content = float_tflite(model)
    assert Runner(content).batch_size == 1
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    x[:, 3:] = 0
    np.testing.assert_allclose(predict(content, x), model(x), atol=1e-5)


def without_counterpart():
    inputs = keras.Input((4,))
    x = kl.Reshape((2, 2))(kl.Dense(4)(inputs))
    return keras.Model(inputs, keras.ops.linalg.det(x), name="determinant")


def test_error_of_the_converter_is_its_first_line():
    with pytest.raises(ValueError, match="MatrixDeterminant' op is neither") as info:
        float_tflite(without_counterpart())
    lines = str(info.value).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 200


def test_size_of_a_model_that_cannot_be_converted_is_refused_before_training():
    with pytest.raises(ValueError, match="'determinant' could not be conv") as info:
        tfc.compress(without_counterpart(), tfc.SizeConstrained(size="10 kB"))
    assert len(str(info.value)) < 400


IMAGES = (4, 4, 3)
FREED = {
    "two upsamplings": lambda: [kl.UpSampling2D(), kl.UpSampling2D(), kl.Conv2D(2, 3)],
    "reshaped": lambda: [kl.UpSampling2D(), kl.UpSampling2D(), kl.Reshape((16, 48))],
    "flattened": lambda: [kl.UpSampling2D(), kl.Flatten(), kl.Dense(3)],
}


def samples(shape, size=6):
    return np.random.default_rng(0).normal(size=(size, *shape)).astype("float32")


@pytest.mark.parametrize("name", FREED)
def test_file_for_one_sample_is_freed(name):
    inputs = keras.Input(batch_shape=(1, *IMAGES))
    keras.utils.set_random_seed(0)
    one = stacked(inputs, FREED[name]())
    single = float_tflite(one)
    assert Runner(single).batch_size == 1
    freed = with_free_batch(single)
    assert Runner(freed).batch_size is None
    x = samples(IMAGES)
    expected = np.concatenate([one(x[i : i + 1]) for i in range(len(x))])
    (received,) = Runner(freed)([x])
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_file_whose_samples_are_mixed_stays_for_one():
    inputs = keras.Input(batch_shape=(1, 4))
    outputs = inputs + keras.ops.sum(inputs)
    single = float_tflite(keras.Model(inputs, outputs))
    assert with_free_batch(single) is single


def test_file_with_a_loop_stays_for_one():
    single = float_tflite(stacked(keras.Input((5, 4)), [kl.LSTM(3)]))
    assert len(read(single).subgraphs) > 1
    assert Runner(single).batch_size == 1
    assert with_free_batch(single) is single


def test_upsamplings_are_converted_with_a_free_batch():
    model = stacked(keras.Input(IMAGES), FREED["two upsamplings"]())
    content = float_tflite(model)
    assert Runner(content).batch_size is None
    names = [
        operator_name(read(content), x) for x in read(content).subgraphs[0].operators
    ]
    assert "CONV_2D" in names
    x = samples(IMAGES)
    np.testing.assert_allclose(predict(content, x), model(x), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_upsamplings_of_free_sizes_are_converted(interpolation):
    up = kl.UpSampling2D((2, 3), interpolation=interpolation)
    model = stacked(keras.Input((None, None, 3)), [up, kl.Conv2D(2, 3)])
    content = float_tflite(model)
    for shape in ((4, 4, 3), (7, 5, 3)):
        x = samples(shape)
        np.testing.assert_allclose(predict(content, x), model(x), atol=1e-5)


class Doubled(kl.Layer):
    def call(self, x):
        return keras.ops.repeat(x, 2, axis=1)


def test_operations_that_need_known_sizes_are_converted_as_the_error_says():
    model = stacked(keras.Input((None, None, 3)), [Doubled(), kl.Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"such as \(224, 224, 3\): make `inputs`"):
        float_tflite(model)
    inputs = keras.Input((6, 5, 3))
    content = float_tflite(keras.Model(inputs, model(inputs)))
    x = samples((6, 5, 3))
    np.testing.assert_allclose(predict(content, x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* of the weights are left alone")
@pytest.mark.parametrize(
    "norm",
    [kl.BatchNormalization(), kl.RMSNormalization()],
    ids=lambda layer: layer.name,
)
def test_dense_kernel_after_a_normalization_is_not_multiplied(norm, tmp_path):
    model = keras.Sequential([keras.Input((6,)), norm, kl.Dense(5)])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    student = tfc.compress(model, tfc.Uniform(4, activation_bits=None))
    tfc.export(tfc.finalize(student), tmp_path / "model.tflite")
