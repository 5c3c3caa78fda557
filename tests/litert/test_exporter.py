"""Export of packed models to proven files."""

import lzma
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import tfcompress as tfc
from tests.litert.models import (
    FEW_MODELS,
    MODELS,
    check_native_types,
    operators,
    several_inputs_and_outputs,
    stacked,
)
from tests.litert.packed_models import make_digit_model, make_packed
from tfcompress.graph.graph import Graph
from tfcompress.litert import check, export, exporter, predict
from tfcompress.litert.flatbuffer import read, write
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.stored import kernel_tensors
from tfcompress.quantizers.packing import packed_bytes


@pytest.mark.parametrize("build", MODELS)
def test_export_proves_every_kind_of_model(build, tmp_path):
    model = make_packed(keras.Model(*build()), bits=(2, 3, 8))
    path = tmp_path / "model.tflite"
    report = export(model, path)
    # Each kernel has a container of its layer's bits; equal kernels share the
    # smallest one.
    stored = {row["layer"]: row["container_bits"] for row in report["tensors"]}
    for kernel in packed_kernels(model):
        assert stored[kernel.layer] == (kernel.bits if kernel.codes.any() else 2)
    rows = [{**row, "type": f"INT{row['container_bits']}"} for row in report["tensors"]]
    assert rows == report["tensors"]
    # A check without the plan finds the same.
    assert check(path, model) == {k: v for k, v in report.items() if k != "size"}


@pytest.mark.parametrize("build", FEW_MODELS)
def test_export_for_latency_lets_operators_read_the_codes(build, tmp_path):
    model = make_packed(keras.Model(*build()), bits=(2, 3, 8))
    path = tmp_path / "model.tflite"
    report = export(model, path, optimize="latency")
    check_native_types(report, model)
    stored = kernel_tensors(path.read_bytes())
    decoded = {
        x["layer"] for x in report["layers"] if x["reason"].startswith("decoded")
    }
    named = Graph(model).layers().items()  # tables of embeddings are looked up
    tables = {n for n, x in named if isinstance(x, tfc.layers.PackedEmbedding)}
    assert {x.name for x in stored if not x.native} - tables == decoded
    assert operators(path.read_bytes()).count("DEQUANTIZE") == len(decoded)
    found = check(path, model)
    assert found == {k: v for k, v in report.items() if k in found}


def test_export_refuses_an_unknown_optimize(digit_model, tmp_path):
    with pytest.raises(ValueError, match="`optimize` is one of .* optimize='speed'"):
        export(digit_model, tmp_path / "model.tflite", optimize="speed")
    assert not os.listdir(tmp_path)


def test_export_takes_sequential_models(tmp_path):
    model = keras.Sequential(
        [keras.Input((9,)), tfc.layers.PackedDense(3, kernel_bits=2, name="only")]
    )
    model.get_layer("only").set_kernel(np.eye(9, 3), np.ones((1, 3)))
    report = export(model, tmp_path / "model.tflite")
    assert [row["layer"] for row in report["tensors"]] == ["only"]


def test_export_proves_a_ternary_student(images, tmp_path):
    def ternary():
        return {"kernel_quantizer": tfc.quantizers.Ternary()}

    inputs = keras.Input((28, 28, 1))
    x = tfc.layers.QuantConv2D(8, 3, strides=2, use_bias=False, **ternary())(inputs)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    x = tfc.layers.QuantConv2D(16, 3, strides=2, use_bias=False, **ternary())(x)
    x = kl.GlobalAveragePooling2D()(kl.ReLU()(kl.BatchNormalization()(x)))
    student = keras.Model(inputs, tfc.layers.QuantDense(10, **ternary())(x))
    with pytest.raises(ValueError, match=r"Call `tfcompress\.finalize`"):
        export(student, tmp_path / "model.tflite")

    tiny = tfc.finalize(student)
    report = export(tiny, tmp_path / "model.tflite", verify=images)
    assert report["agreement"]["top1"] == 1.0
    assert [row["type"] for row in report["tensors"]] == ["INT2"] * 3
    outputs = predict(tmp_path / "model.tflite", images)
    np.testing.assert_allclose(outputs, student.predict(images, verbose=0), atol=1e-5)


def test_export_reports_the_sizes_of_the_files(digit_model, tmp_path):
    path = tmp_path / "model.tflite"
    size = export(digit_model, path)["size"]
    assert size["tflite_bytes"] == path.stat().st_size
    assert size["float_tflite_bytes"] > size["tflite_bytes"]
    packed = len(lzma.compress(path.read_bytes()))
    assert size["tflite_xz_bytes"] == pytest.approx(packed, rel=0.02)


@pytest.mark.parametrize("kind", ["list", "dict", "dataset"])
def test_export_verifies_models_of_several_inputs(kind, tmp_path):
    model = make_packed(keras.Model(*several_inputs_and_outputs()))
    image, age = np.ones((6, 8, 8, 3), "float32"), np.ones((6, 5), "float32")
    named = {"image": image, "age": age}
    verify = {
        "list": [age, image],  # the order of `keras.tree.flatten`
        "dict": named,
        "dataset": tf.data.Dataset.from_tensor_slices(named).batch(4),
    }[kind]
    report = export(model, tmp_path / "model.tflite", verify)
    assert report["agreement"]["samples"] == 6
    assert report["verified_on"] == "samples"


def test_export_keeps_the_old_file_when_the_new_one_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("it does not predict like Keras")

    digit_model = make_digit_model()
    path = tmp_path / "model.tflite"
    export(digit_model, path)
    before = path.read_bytes()
    digit_model.get_layer("head").bias.assign(np.arange(10))
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "compare", fail)
        with pytest.raises(ValueError, match="does not predict"):
            export(digit_model, path)
        with pytest.raises(ValueError, match="does not predict"):
            export(digit_model, tmp_path / "other.tflite")
    names = ["model.refused.tflite", "model.tflite", "other.refused.tflite"]
    assert sorted(os.listdir(tmp_path)) == names
    assert path.read_bytes() == before
    export(digit_model, path)
    assert path.read_bytes() != before


def test_export_reads_back_the_written_file(digit_model, tmp_path, monkeypatch):
    """It finds bugs of the writer, such as another packing order."""
    real = exporter.pack_kernels

    def swapped(*args):
        content, matches = real(*args)
        matches[0].scale[:2] = matches[0].scale[1::-1]
        return content, matches

    monkeypatch.setattr(exporter, "pack_kernels", swapped)
    with pytest.raises(ValueError, match="planned type, codes and scales"):
        export(digit_model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == ["model.refused.tflite"]


def test_export_refuses_unwritable_paths_before_conversion(
    digit_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(exporter, "float_tflite", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="directory that exists.*absent"):
        export(digit_model, tmp_path / "absent" / "model.tflite")
    with pytest.raises(NotADirectoryError, match="directory that exists"):
        export(digit_model, tmp_path / "file" / "model.tflite")
    with pytest.raises(IsADirectoryError, match="name a file"):
        export(digit_model, tmp_path)
    with pytest.raises(ValueError, match="`verify` should hold"):
        export(digit_model, tmp_path / "model.tflite", np.ones((3, 3)))
    assert os.listdir(tmp_path) == ["file"]


def resnet20():
    def block(x, filters, stride):
        y = kl.Conv2D(filters, 3, strides=stride, padding="same")(x)
        y = kl.Conv2D(filters, 3, padding="same")(kl.ReLU()(y))
        if stride > 1:
            x = kl.Conv2D(filters, 1, strides=stride)(x)
        return kl.ReLU()(kl.Add()([x, y]))

    inputs = keras.Input((32, 32, 3))
    x = kl.Conv2D(16, 3, padding="same")(inputs)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(block(block(x, filters, stride), filters, 1), filters, 1)
    outputs = kl.Dense(10)(kl.GlobalAveragePooling2D()(x))
    return make_packed(keras.Model(inputs, outputs), bits=(2,))


def test_export_of_a_resnet_takes_few_bytes_besides_codes(tmp_path):
    """At most 1.05 x the constants, on top of the same graph without them."""
    model, path = resnet20(), tmp_path / "resnet20.tflite"
    export(model, path)
    stored = sum(
        packed_bytes(layer.codes.size, layer.container_bits)
        + 4 * layer.kernel_scale.shape[-1]
        + 4 * layer.bias.shape[0]
        for layer in model.layers
        if isinstance(layer, tfc.layers.PackedKernel)
    )
    content = path.read_bytes()
    assert len(content) <= 1.05 * stored + size_without_constants(content)


def size_without_constants(content):
    model = read(content)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.data = buffer.data[:0]
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None:
            tensor.quantization.scale = tensor.quantization.scale[:0]
            tensor.quantization.zeroPoint = tensor.quantization.zeroPoint[:0]
    return len(write(model))


@pytest.mark.parametrize("scheme", [tfc.PrunedTernary(), tfc.Uniform(8, 8)])
def test_export_of_a_loop_is_for_one_sample_and_says_so(scheme, tmp_path):
    layers = [kl.Dense(8, activation="relu"), kl.GRU(4), kl.Dense(3)]
    model = stacked(keras.Input((5, 4)), layers)
    x = np.random.default_rng(0).normal(size=(20, 5, 4)).astype("float32")
    student = tfc.compress(model, scheme)
    student.compile("adam", "mse")
    student.fit(x, np.zeros((20, 3)), epochs=2, verbose=0)
    tiny = tfc.finalize(student)
    path = tmp_path / "model.tflite"
    with pytest.warns(UserWarning, match="1 sample at a time"):
        report = export(tiny, path, verify=x)
    assert report["batch_size"] == 1
    assert report["agreement"]["samples"] == 20
    np.testing.assert_allclose(predict(path, x), tiny(x), atol=1e-3)
    with pytest.raises(ValueError, match="target='litert' and activations='float'"):
        export(tiny, path, x, "latency", "int8", representative_data=x)


def test_export_of_two_upsamplings_has_a_free_batch(tmp_path):
    conv = kl.Conv2D(4, 3, activation="relu")
    layers = [conv, kl.UpSampling2D(), kl.UpSampling2D(), kl.Conv2D(2, 3)]
    model = stacked(keras.Input((8, 8, 3)), layers)
    tiny = tfc.finalize(tfc.compress(model, tfc.Uniform(8, 8)))
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    for options in (
        {},
        {"optimize": "latency"},
        {"optimize": "latency", "activations": "int8", "representative_data": x},
    ):
        report = export(tiny, tmp_path / "model.tflite", verify=x, **options)
        assert "batch_size" not in report
        assert report["agreement"]["samples"] == 6
