"""Inference in the LiteRT runtime."""

import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType
from keras import layers as kl

from tests.litert.packed_models import make_packed
from tfcompress.litert import export, float_tflite, latency, predict, runtime, timing
from tfcompress.litert.runtime import Runner, try_out


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    """`(path, model)` with inputs "b" (3,) and "a" (4,), and two outputs."""
    b, a = keras.Input((3,), name="b"), keras.Input((4,), name="a")
    sum_ = kl.Add()([kl.Dense(2)(b), kl.Dense(2)(a)])
    model = make_packed(keras.Model([b, a], [sum_, kl.Dense(5)(a)]))
    path = tmp_path_factory.mktemp("two") / "two.tflite"
    export(model, path)
    return path, model


@pytest.mark.parametrize("resolver", list(OpResolverType)[:3])
def test_runner_decodes_kernels_alike_with_all_resolvers(exported, images, resolver):
    path, model = exported
    (outputs,) = Runner(path, resolver=resolver)([images])
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 10, 64, 1000])
def test_predict_covers_all_samples(exported, images, batch_size):
    path, model = exported
    expected = model.predict(images, verbose=0)
    outputs = predict(path, images, batch_size=batch_size)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_predict_takes_bytes_and_datasets(exported, images):
    path, _ = exported
    expected = predict(path, images)
    dataset = tf.data.Dataset.from_tensor_slices((images, images[:, 0, 0])).batch(24)
    np.testing.assert_array_equal(predict(path.read_bytes(), dataset), expected)
    without_labels = dataset.map(lambda x, y: x)
    np.testing.assert_array_equal(predict(str(path), without_labels), expected)


def test_predict_takes_several_inputs_by_order_or_name(two_inputs):
    path, model = two_inputs
    b, a = np.ones((6, 3), "float32"), np.arange(24.0).reshape(6, 4)
    expected = model.predict([b, a], verbose=0)
    for x in ([b, a], {"a": a, "b": b, "unused": a}):
        outputs = predict(path, x, batch_size=4)
        assert list(outputs) == ["output_0", "output_1"]
        for received, wanted in zip(outputs.values(), expected, strict=True):
            np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 3)), "Received: 1 arrays"),
        ({"a": np.ones((2, 4))}, r"Received: \['a'\]"),
        ([np.ones((2, 3)), np.ones((3, 4))], "The same number of samples"),
        ([np.ones((0, 3)), np.ones((0, 4))], "At least one sample"),
        ([np.ones((2, 3)), np.ones((2, 5))], r"-1 for any size.*\(2, 5\)"),
        ([np.ones((2, 3), "complex64"), np.ones((2, 4))], "complex64"),
        ([3.0, 4.0], "An array of samples, .* type float"),
        (iter([np.ones((2, 3))]), "An array of samples, .* type list_iterator"),
    ],
)
def test_predict_refuses_data_that_does_not_fit(two_inputs, x, message):
    with pytest.raises(ValueError, match=message):
        predict(two_inputs[0], x)


def test_predict_refuses_infinite_and_empty_datasets(exported, images):
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(8)
    with pytest.raises(ValueError, match="without end"):
        predict(exported[0], dataset.repeat())
    with pytest.raises(ValueError, match="At least one sample"):
        predict(exported[0], dataset.take(0))


def test_predict_uses_the_fixed_batch_size_of_a_file(tmp_path):
    inputs = keras.Input(batch_shape=(2, 4))
    model = make_packed(keras.Model(inputs, kl.Dense(3)(inputs)))
    export(model, tmp_path / "pairs.tflite")
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert predict(tmp_path / "pairs.tflite", x).shape == (6, 3)


def test_latency_is_the_median_time_of_each_file_in_milliseconds(exported, monkeypatch):
    """A clock that is read once in an untimed run, and twice in a timed one."""
    timed = [[0.0, 0.002, 0.002, 0.005], [0.0, 0.001, 0.001, 0.005]]
    timed.append([0.0, 0.009, 0.009, 0.012])
    clock = iter([0.0] * 6 + sum(timed, []))
    patched = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(timing, "time", patched)
    path, model = exported
    times = latency([path, float_tflite(model)], runs=3)
    assert times == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 4096])
def test_runner_and_try_out_refuse_other_files(content, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for file in (content, path):
        with pytest.raises(ValueError, match=r"A \.tflite file .*expected"):
            Runner(file)
    with pytest.raises(ValueError, match=r"A \.tflite file .*expected"):
        try_out(path, [(1, 2)])


def test_runner_and_try_out_name_a_missing_file(tmp_path):
    for use in (Runner, lambda path: try_out(path, [])):
        with pytest.raises(FileNotFoundError, match=r"absent\.tflite"):
            use(tmp_path / "absent.tflite")


def test_try_out_survives_a_crash_and_a_hang(exported, tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    monkeypatch.setattr(runtime, "__file__", str(program))
    program.write_text("import os; os.abort()")
    with pytest.raises(ValueError, match=r"digits\.tflite', which ended .* code -6"):
        try_out(exported[0], [(1, 28, 28, 1)])
    program.write_text("while True: pass")
    monkeypatch.setattr(runtime, "TRY_OUT_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"still busy .* after 0\.5 s"):
        try_out(exported[0], [(1, 28, 28, 1)])


def test_runtime_imports_no_tensorflow():
    """`try_out` starts it for every check; TensorFlow would cost seconds."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runtime", {runtime.__file__!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
