"""Check of a file against its packed model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from keras import layers as kl
from keras import ops

from tests.litert.packed_models import make_packed
from tfcompress.litert import check, export, float_tflite
from tfcompress.litert.flatbuffer import operator_name, read, write


def test_check_reports_agreement_and_tensors_of_a_sound_file(exported, images):
    path, model = exported
    report = check(path, model, images)
    assert report["agreement"]["samples"] == 64
    assert report["agreement"]["top1"] == 1.0
    assert report["agreement"]["max_abs_diff"] < 1e-5
    assert report["verified_on"] == "samples"
    assert report["tensors"][0] == {
        "layer": "first",
        "tensor": "first",
        "type": "INT2",
        "container_bits": 2,
        "shape": [6, 3, 3, 1],
        "bytes": 14,
    }
    assert [row["type"] for row in report["tensors"]] == [
        "INT2",
        "INT4",
        "INT8",
        "INT2",
    ]


def test_check_takes_the_same_random_samples_each_time(exported):
    reports = [check(*exported) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0]["verified_on"] == "random"
    assert reports[0]["agreement"]["samples"] == 8


def test_check_takes_datasets_with_and_without_labels(exported, images):
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(25)
    labeled = dataset.map(lambda x: (x, x[:, 0, 0, 0]))
    for verify in (dataset, labeled):
        assert check(*exported, verify)["agreement"]["samples"] == 64


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05, 0.3, 0.7, 0.95, 0.999])
def test_check_refuses_truncated_files(exported, fraction):
    path, model = exported
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match="truncated|empty"):
        check(path, model)


@pytest.mark.slow
def test_check_raises_value_errors_only_for_flipped_bytes(exported):
    path, model = exported
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            check(path, model)
        except ValueError:
            refused += 1
    # Padding bytes and the last bits of a bias may change without effect.
    assert refused > 50


def flip_byte(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x55
    path.write_bytes(content)


def test_check_finds_flipped_codes(exported):
    path, model = exported
    codes = [b.data for b in read(path.read_bytes()).buffers if b.data is not None]
    (packed,) = [data for data in codes if data.size == 3 * 3 * 6 * 5]
    flip_byte(path, path.read_bytes().index(packed.tobytes()) + 100)
    with pytest.raises(ValueError, match="should hold the kernel of layer 'last'"):
        check(path, model)


def edit_file(path, edit):
    """Applies `edit(model, graph)` to the file's flatbuffer."""
    model = read(path.read_bytes())
    edit(model, model.subgraphs[0])
    path.write_bytes(write(model))


def tensor_named(graph, name):
    return next(t for t in graph.tensors if t.name == name.encode())


def test_check_finds_a_changed_scale_by_running(exported):
    def edit(model, graph):
        quantization = tensor_named(graph, "head").quantization
        quantization.scale = quantization.scale * np.float32(1.1)

    path, model = exported
    edit_file(path, edit)
    with pytest.raises(ValueError, match="should predict like Keras: 'output_0'"):
        check(path, model)


def test_check_finds_a_convolution_that_reads_int2_directly(exported):
    """The runtime returns NaN for it without an error."""

    def edit(model, graph):
        for operator in list(graph.operators):
            if operator_name(model, operator) == "DEQUANTIZE":
                codes, decoded = operator.inputs[0], operator.outputs[0]
                if graph.tensors[codes].type == schema.TensorType.INT2:
                    graph.operators.remove(operator)
                    for reader in graph.operators:
                        inputs = reader.inputs
                        reader.inputs = np.where(inputs == decoded, codes, inputs)

    path, model = exported
    edit_file(path, edit)
    with pytest.raises(ValueError, match="CONV_2D, which reads 'first' of type INT2"):
        check(path, model)


def test_check_finds_outputs_that_are_not_finite(tmp_path):
    def edit(model, graph):
        (bias,) = [b for b in model.buffers if b.data is not None and b.data.size == 12]
        bias.data = np.full(3, np.nan, np.float32).view(np.uint8)

    path = tmp_path / "model.tflite"
    inputs = keras.Input((40,))
    model = make_packed(keras.Model(inputs, kl.Dense(3, name="head")(inputs)))
    export(model, path)
    edit_file(path, edit)
    with pytest.raises(ValueError, match="NaN or infinity in 'output_0' from LiteRT"):
        check(path, model)
    model.get_layer("head").bias.assign([np.nan] * 3)
    with pytest.raises(ValueError, match="NaN or infinity in 'output_0' from Keras"):
        check(path, model)


def test_check_refuses_files_of_other_models(exported, tmp_path):
    path, model = exported
    (tmp_path / "float.tflite").write_bytes(float_tflite(model))
    with pytest.raises(ValueError, match="kernel of layer 'first'"):
        check(tmp_path / "float.tflite", model)

    inputs = keras.Input((28, 28, 1))
    x = kl.Conv2D(6, 3, strides=2, name="first")(inputs)
    other = make_packed(keras.Model(inputs, kl.GlobalAveragePooling2D()(x)))
    export(other, tmp_path / "other.tflite")
    with pytest.raises(ValueError, match="kernel of layer 'middle'"):
        check(tmp_path / "other.tflite", model)
    with pytest.raises(ValueError, match=r"shapes \[\(8, 6\)\].*another model"):
        check(path, other)

    inputs = keras.Input((20, 4))
    sequences = make_packed(keras.Model(inputs, kl.Conv1D(3, 3)(inputs)))
    with pytest.raises(ValueError, match=r"expects inputs.*\(-1, 28, 28, 1\)"):
        check(path, sequences)


def test_check_refuses_missing_files_and_samples_of_other_shapes(exported, tmp_path):
    path, model = exported
    with pytest.raises(FileNotFoundError, match=r"absent\.tflite"):
        check(tmp_path / "absent.tflite", model)
    with pytest.raises(ValueError, match=r"\(None, 28, 28, 1\).*\(5, 20, 20, 1\)"):
        check(path, model, np.ones((5, 20, 20, 1)))
    with pytest.raises(ValueError, match="Received: 2 arrays"):
        check(path, model, (np.ones((5, 28, 28, 1)), np.ones(5)))


@pytest.fixture(scope="module")
def for_latency(digit_model, tmp_path_factory):
    """Content of the digit model's file for latency."""
    path = tmp_path_factory.mktemp("latency") / "digits.tflite"
    export(digit_model, path, optimize="latency")
    return path.read_bytes()


def test_check_compares_a_file_for_latency_nearly(
    digit_model, for_latency, images, tmp_path
):
    path = tmp_path / "digits.tflite"
    path.write_bytes(for_latency)
    # Random weights tell classes apart less than trained ones do.
    with pytest.warns(UserWarning, match="same class for 9.* less than 99.5%"):
        report = check(path, digit_model, images)
    # Operators round their inputs to 8 bits, so that outputs are less exact.
    assert 1e-5 < report["agreement"]["max_abs_diff"] < 0.05
    types = ["INT8"] * 4  # the head has 5 inputs: rows of 4 bits end within a byte
    assert [row["type"] for row in report["tensors"]] == types


def test_check_finds_a_changed_scale_in_a_file_for_latency(
    digit_model, for_latency, tmp_path
):
    def edit(model, graph):
        quantization = tensor_named(graph, "head").quantization
        quantization.scale = quantization.scale * np.float32(1.5)

    path = tmp_path / "digits.tflite"
    path.write_bytes(for_latency)
    edit_file(path, edit)
    with pytest.raises(ValueError, match="nearly like Keras.*optimize='size'"):
        check(path, digit_model)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "float16"])
def test_check_compares_outputs_of_every_type(dtype, tmp_path):
    inputs = keras.Input((8,))
    x = 60 * ops.abs(kl.Dense(4, activation="tanh")(inputs))
    model = make_packed(
        keras.Model(inputs, x > 20 if dtype == "bool" else ops.cast(x, dtype))
    )
    path = tmp_path / "model.tflite"
    export(model, path)
    assert check(path, model)["agreement"]["max_abs_diff"] < 0.1
    other = make_packed(keras.Model(inputs, ops.cast(61 - x, dtype)))
    with pytest.raises(ValueError, match="LiteRT should predict like Keras"):
        check(path, other)
