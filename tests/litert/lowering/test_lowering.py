"""Containers and operators of kernels under a latency allowance."""

import re

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.models import FEW_MODELS, MODELS, operators
from tests.litert.packed_models import make_packed
from tfcompress.litert import export, peak_memory, predict
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.stored import kernel_tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:LiteRT and Keras predict the same class:UserWarning"
)


def bottleneck(size=14, batch=None):
    """Packed 4-bit model with all kinds of convolutions that can be FULLY_CONNECTED."""
    inputs = keras.Input(batch_shape=(batch, size, size, 16))
    x = kl.Conv2D(96, 1, activation="relu", name="expand")(inputs)
    x = kl.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = kl.Conv2D(64, 1, strides=2, name="strided")(x)
    x = kl.Conv2D(64, 3, padding="same", activation="relu", name="wide")(x)
    x = kl.Conv2D(64, 3, strides=2, padding="same", name="both")(x)
    x = kl.Conv2D(64, 3, groups=4, padding="same", name="groups")(x)
    x = kl.GlobalAveragePooling2D()(x)
    return make_packed(keras.Model(inputs, kl.Dense(10, name="head")(x)), bits=(4,))


def written(model, path, **options):
    """Exports, and returns `(report, {layer: type})`."""
    if options.get("activations") == "int8":
        samples = [np.concatenate([x] * 2) for x in next(iter(Samples(model, None)))]
        if model.inputs[0].shape[0]:
            samples = [x[: model.inputs[0].shape[0]] for x in samples]
        options["representative_data"] = samples
    report = export(model, path, **options)
    return report, {row["layer"]: row["type"] for row in report["layers"]}


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_lowering_keeps_the_predicted_time_within_the_allowance(activations, tmp_path):
    model, path = bottleneck(), tmp_path / "model.tflite"
    sizes = []
    for allowance in (1.0, 1.05, 1.5, 100):
        report, types = written(
            model,
            path,
            optimize="latency",
            activations=activations,
            allowance=allowance,
        )
        predicted = report["predicted_time"]
        assert predicted["ratio"] <= allowance
        assert predicted["allowance"] == allowance
        sizes.append(sum(row["bytes"] for row in report["layers"]))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    few = {name for name, kind in types.items() if kind == "INT4"}
    assert few == {"expand", "strided", "wide", "both", "head"}


def test_lowering_reports_why_each_layer_is_as_it_is(tmp_path):
    report, _ = written(bottleneck(), tmp_path / "m.tflite", optimize="latency")
    reasons = {row["layer"]: row["reason"] for row in report["layers"]}
    assert list(reasons) == [
        "expand", "depthwise", "strided", "wide", "both", "groups", "head"
    ]  # fmt: skip
    assert "decoded to float when loaded" in reasons["depthwise"]
    assert "groups of channels" in reasons["groups"]
    assert "the allowance is spent where it saves more" in reasons["wide"]
    assert "FULLY_CONNECTED reads 4 bits" in reasons["head"]


@pytest.mark.parametrize("optimize", ["latency", "balanced"])
def test_lowering_has_an_allowance_of_its_own(optimize, tmp_path):
    report, _ = written(bottleneck(), tmp_path / "m.tflite", optimize=optimize)
    expected = {"latency": 1.05, "balanced": 1.0}[optimize]
    assert report["predicted_time"]["allowance"] == expected
    assert report["predicted_time"]["ratio"] <= expected


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_lowered_file_holds_the_codes_and_predicts_like_keras(
    activations, batch, tmp_path
):
    model, path = bottleneck(batch=batch), tmp_path / "model.tflite"
    x = np.random.default_rng(0).normal(size=(6, 14, 14, 16)).astype("float32")
    report, _ = written(
        model, path, optimize="latency", allowance=100, activations=activations
    )
    stored = {tensor.name: tensor for tensor in kernel_tensors(path.read_bytes())}
    for kernel in packed_kernels(model):
        tensor = stored[kernel.layer]
        if tensor.type == "INT4":
            codes = tensor.codes().T
            np.testing.assert_array_equal(codes, kernel.codes)
            np.testing.assert_array_equal(tensor.scale, kernel.scale)
    expected = model.predict(x, batch_size=batch or 6, verbose=0)
    difference = np.abs(predict(path, x) - expected).max()
    assert difference < 0.1 * np.abs(expected).max()


def check_lowering_without_limit(build, activations, folder):
    model = make_packed(keras.Model(*build()), bits=(2, 3, 4))
    report, _ = written(
        model,
        folder / "model.tflite",
        optimize="balanced",
        allowance=1000,
        activations=activations,
    )
    reasons = "channels|more bytes|strides along a size"
    for row in report["layers"]:
        assert row["type"] != "INT8" or re.search(reasons, row["reason"])


@pytest.mark.parametrize("build", MODELS)
def test_lowering_without_limit_proves_every_kind_of_model(build, tmp_path):
    check_lowering_without_limit(build, "int8", tmp_path)


@pytest.mark.parametrize("build", FEW_MODELS)
def test_lowering_of_float_files_without_limit_proves_every_kind_of_model(
    build, tmp_path
):
    check_lowering_without_limit(build, "float", tmp_path)


def test_lowering_stores_a_kernel_of_two_readers_once(tmp_path):
    shared = kl.Conv2D(16, 1, name="shared")
    inputs = keras.Input((8, 8, 16))
    model = make_packed(keras.Model(inputs, shared(kl.ReLU()(shared(inputs)))), (4,))
    for activations in ("float", "int8"):
        path = tmp_path / f"{activations}.tflite"
        report, types = written(
            model, path, optimize="latency", allowance=9, activations=activations
        )
        assert types == {"shared": "INT4"}
        assert len(kernel_tensors(path.read_bytes())) == 1
        assert operators(path.read_bytes()).count("FULLY_CONNECTED") == 2


def test_lowering_finds_the_container_by_the_codes(tmp_path):
    inputs = keras.Input((8, 8, 16))
    model = make_packed(keras.Model(inputs, kl.Conv2D(8, 1, name="a")(inputs)), (8,))
    layer = model.get_layer("a")
    codes = np.random.default_rng(0).integers(-1, 2, layer.kernel_shape)
    layer.set_kernel(codes, np.ones(layer.kernel_scale.shape))
    _, types = written(model, tmp_path / "m.tflite", optimize="latency", allowance=9)
    assert types == {"a": "INT2"}


def test_lowering_of_free_sizes_counts_the_sizes_of_the_samples(tmp_path):
    def ratios(model, verify):
        report, _ = written(
            model,
            tmp_path / "m.tflite",
            optimize="latency",
            allowance=100,
            verify=verify,
        )
        return {row["layer"]: row["time"] for row in report["layers"]}

    def net(size):
        inputs = keras.Input((size, size, 16))
        x = kl.Conv2D(32, 3, padding="same", name="wide")(inputs)
        x = kl.Conv2D(32, 3, strides=2, name="strided")(x)
        return make_packed(keras.Model(inputs, x), bits=(4,))

    x = np.random.default_rng(0).normal(size=(2, 24, 24, 16)).astype("float32")
    free, fixed = ratios(net(None), x), ratios(net(24), x)
    assert free["wide"] == fixed["wide"] > 1
    assert free["strided"] == 1  # it stays as it is


def test_export_reports_the_arena_of_the_file(tmp_path):
    path = tmp_path / "model.tflite"
    report, _ = written(bottleneck(), path, optimize="latency")
    assert report["size"]["arena_bytes"] == peak_memory(path)


@pytest.mark.parametrize("allowance", [0, -1, "1.3", float("nan"), float("inf"), True])
def test_export_refuses_an_allowance_that_is_no_positive_number(allowance, tmp_path):
    with pytest.raises(ValueError, match="`allowance` is a finite number above 0"):
        tfc.export(
            bottleneck(), tmp_path / "m.tflite", optimize="latency", allowance=allowance
        )
    assert not list(tmp_path.iterdir())


def test_export_refuses_an_allowance_for_the_smallest_file(tmp_path):
    with pytest.raises(ValueError, match="`allowance` is expected with one of"):
        tfc.export(bottleneck(), tmp_path / "m.tflite", allowance=1.3)


@pytest.mark.parametrize("optimize", ["latency", "balanced"])
def test_model_without_kernels_takes_its_time(optimize, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.ReLU()])
    report = export(model, tmp_path / "m.tflite", optimize=optimize)
    assert report["predicted_time"]["ratio"] == 1.0 and report["layers"] == []
