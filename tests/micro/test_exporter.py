"""Export for microcontrollers, from a Keras model to a file that is proven."""

import json
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.models import MODELS
from tests.litert.packed_models import make_packed
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.proof.samples import Samples
from tfcompress.micro import runtime as micro_runtime
from tfcompress.micro.exporter import _check_runs, flash_size, int8_file
from tfcompress.micro.operators import operator_name

pytestmark = pytest.mark.filterwarnings("ignore:TensorFlow Lite Micro and Keras have")


def wide_net():
    """Kernels of 400 to 9,216 weights, which are worth an encoding."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = kl.Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    x = kl.Conv2D(64, 3, strides=2, activation="relu", name="wide")(x)
    x = kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(x)
    x = kl.Flatten()(x)
    return keras.Model(inputs, kl.Dense(10, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def model():
    return make_packed(wide_net(), bits=(2, 2, 4))


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).normal(size=(12, 8, 8, 4)).astype("float32")


@pytest.fixture(autouse=True)
def needs_the_runtime(runtime):
    """Skips these tests where the runtime is not installed."""


def exported(model, path, samples, **kwargs):
    return tfc.export(
        model, path, samples, representative_data=samples, target="micro", **kwargs
    )


def test_export_encodes_kernels_and_reports_what_a_device_needs(
    model, samples, tmp_path
):
    path = tmp_path / "model.tflite"
    report = exported(model, path, samples)
    micro = report["micro"]
    assert micro["flash_bytes"] == path.stat().st_size == report["size"]["tflite_bytes"]
    assert micro["flash_bytes"] < 0.5 * micro["int8_flash_bytes"]
    assert micro["arena_bytes"] > micro["int8_arena_bytes"] > 8 * 8 * 16
    assert micro["latency_ratio"] > 0
    assert micro["operators"] == [
        "AddConv2D", "AddDecode", "AddDepthwiseConv2D", "AddFullyConnected",
        "AddReshape", "AddSoftmax",
    ]  # fmt: skip
    assert report["agreement"]["samples"] == 12
    assert report["verified_on"] == "samples"
    rows = {row["tensor"]: row for row in report["tensors"]}
    assert list(rows) == ["first", "wide", "deep", "head"]
    assert rows["wide"]["int8_bytes"] == 3 * 3 * 16 * 64
    assert rows["wide"]["encoding"] == "Huffman" and rows["wide"]["bits"] == 2
    json.dumps(report)


def test_file_takes_and_returns_int8_for_one_sample(model, samples, tmp_path):
    path = tmp_path / "model.tflite"
    exported(model, path, samples)
    graph = flatbuffer.read(path.read_bytes()).subgraphs[0]
    for index, shape in ((graph.inputs[0], [1, 8, 8, 4]), (graph.outputs[0], [1, 10])):
        assert flatbuffer.TYPE_NAMES[graph.tensors[index].type] == "INT8"
        assert graph.tensors[index].shape.tolist() == shape
    assert flatbuffer.tensor_name(graph.tensors[graph.inputs[0]]) == "image"


@pytest.mark.parametrize("scale", (0.01, 1, 300))
def test_flash_size_is_never_below_the_file(model, samples, tmp_path, scale):
    report = exported(model, tmp_path / "model.tflite", samples * scale)
    flash = report["micro"]["flash_bytes"]
    assert flash <= flash_size(model) <= 1.08 * flash


def test_kernels_that_would_grow_stay_int8(samples, tmp_path):
    model = make_packed(wide_net(), bits=(8,))
    rows = exported(model, tmp_path / "model.tflite", samples)["tensors"]
    assert [row["encoding"] for row in rows if row["tensor"] != "head"] == ["INT8"] * 3
    assert all(row["bytes"] <= row["int8_bytes"] for row in rows)


@pytest.mark.parametrize(
    "make",
    [x for x in MODELS if x.__name__ in {
        "every_operator_in_every_width", "grouped", "dilated", "depthwise", "conv1d",
        "several_inputs_and_outputs", "nested", "shared_layer", "partly_float",
        "one_weight_per_channel", "zero_kernels", "fixed_batch_size",
    }],
    ids=lambda make: make.__name__,
)  # fmt: skip
def test_export_proves_models_of_every_kind(make, tmp_path):
    model = make_packed(keras.Model(*make()))
    arrays = next(iter(Samples(model, None)))
    report = exported(model, tmp_path / "model.tflite", arrays)
    assert report["micro"]["flash_bytes"] <= report["micro"]["int8_flash_bytes"]


def test_wide_depthwise_kernel_of_one_channel_is_encoded(tmp_path):
    inputs = keras.Input((24, 24, 1))
    net = keras.Model(inputs, kl.DepthwiseConv2D(21, padding="same")(inputs))
    samples = np.random.default_rng(0).normal(size=(4, 24, 24, 1)).astype("float32")
    report = exported(make_packed(net, (4,)), tmp_path / "model.tflite", samples)
    assert report["tensors"][0]["encoding"] == "look-up"


def test_upsampling_has_an_operator_that_the_runtime_has(tmp_path):
    inputs = keras.Input((6, 6, 3))
    x = kl.UpSampling2D()(kl.Conv2D(4, 3, padding="same")(inputs))
    samples = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    model = make_packed(keras.Model(inputs, kl.Conv2D(2, 3)(x)))
    report = exported(model, tmp_path / "model.tflite", samples)
    assert "AddResizeNearestNeighbor" in report["micro"]["operators"]


def refused(message, model, tmp_path, **kwargs):
    """Checks for an error, before a file is written."""
    path = tmp_path / kwargs.pop("path", "model.tflite")
    with pytest.raises(ValueError, match=message):
        tfc.export(model, path, **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kwargs, message", [
    ({"optimize": "balanced"}, "'size' or 'latency', or None.*optimize='balanced'"),
    ({"allowance": 2}, "`allowance` is expected with.*'latency'.*optimize='size'"),
    ({"activations": "float"}, "activations='int8', or None.*activations='float'"),
    ({"io": "float"}, "io='int8', or None.*Received: io='float'"),
    ({"representative_data": None}, "`representative_data` is expected: training"),
    ({"arena": "64"}, "`arena` is a number of bytes.*Received: arena='64'"),
    ({"arena": 0}, "`arena` is a number of bytes"),
    ({"target": "esp32"}, "`target` is one of.*Received: target='esp32'"),
    ({"target": "litert", "representative_data": None, "arena": 100}, "`arena` is exp"),
    ({"target": "litert", "representative_data": None, "path": "m.cc"}, "`path` sho"),
    ({"path": "model.c"}, "`path` should end in '.tflite'"),
])  # fmt: skip
def test_arguments_that_contradict_each_other_are_refused(
    model, samples, tmp_path, kwargs, message
):
    kwargs = {"target": "micro", "representative_data": samples, **kwargs}
    refused(message, model, tmp_path, **kwargs)


def test_free_sizes_are_refused(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = make_packed(keras.Model(inputs, kl.Conv2D(5, 3)(inputs)))
    data = np.zeros((2, 8, 8, 3), "float32")
    message = "target='micro' takes inputs of fixed sizes.*None, None, None, 3"
    refused(message, model, tmp_path, target="micro", representative_data=data)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float16", "float64"])
def test_types_that_the_runtime_lacks_are_refused_by_input_and_output(dtype, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (8, 12))
    floats, others = keras.Input((12,)), keras.Input((12,), dtype=dtype, name="pixels")
    x = kl.Dense(4)(kl.Rescaling(1 / 255)(others))
    of_inputs = make_packed(keras.Model(others, x))
    message = f"has inputs of the types.*'pixels' of type {dtype}.*clone_model"
    kwargs = {"target": "micro", "representative_data": data}
    refused(message, of_inputs, tmp_path, **kwargs)
    outputs = keras.ops.cast(kl.Dense(4)(floats), dtype)
    of_outputs = make_packed(keras.Model(floats, outputs))
    refused(f"has outputs of.*of type {dtype}", of_outputs, tmp_path, **kwargs)
    # The remedy that the error names.
    clone = keras.models.clone_model(of_inputs, input_tensors=keras.Input((12,)))
    clone.set_weights(of_inputs.get_weights())
    report = exported(clone, tmp_path / "model.tflite", data)
    assert report["agreement"]["max_abs_diff"] < 0.1


def test_outputs_of_booleans_are_compared(tmp_path):
    inputs = keras.Input((12,))
    model = make_packed(keras.Model(inputs, kl.Dense(40)(inputs) > 0))
    data = np.random.default_rng(0).normal(size=(32, 12))
    report = exported(model, tmp_path / "model.tflite", data)
    assert report["agreement"]["samples"] == 32


@pytest.mark.parametrize("name", ["middle", "last"])
def test_operators_that_the_runtime_lacks_are_refused_by_layer(name, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = kl.Activation("gelu", name=name)(kl.Conv2D(4, 3)(inputs))
    x = x if name == "last" else kl.Conv2D(4, 3)(x)
    model = make_packed(keras.Model(inputs, x))
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    message = f"Received: GELU of '{name}'. Replace these layers"
    refused(message, model, tmp_path, target="micro", representative_data=data)


@pytest.mark.parametrize("depth", [0, 3])
def test_layer_that_ends_the_process_of_the_runtime_is_named(runtime, depth):
    stack = [kl.Conv2D(4, 3, padding="same") for _ in range(depth)]
    x = inputs = keras.Input((8, 8, 4))
    for layer in stack:
        x = layer(x)
    x = kl.Add(name="sum")([x, kl.Conv2D(4, 3, padding="same", name="last")(x)])
    model = make_packed(keras.Model(inputs, kl.Conv2D(4, 3)(x)), (8,))
    samples = Samples(model, np.random.default_rng(0).normal(size=(4, 8, 8, 4)))
    plain, _, _, layers = int8_file(model, packed_kernels(model), samples)
    file = flatbuffer.read(plain)
    (graph,) = file.subgraphs
    sums = [x for x in graph.operators if operator_name(file, x) == "ADD"]
    graph.tensors[sums[0].outputs[0]].quantization.scale = np.float32([1e-9])
    with pytest.raises(ValueError, match="computes in int8.*Received: 'sum', which"):
        _check_runs(runtime, flatbuffer.write(file), layers)


def test_arena_smaller_than_the_activations_is_refused_with_the_smallest(
    model, samples, tmp_path
):
    smallest = exported(model, tmp_path / "a", samples)["micro"]["int8_arena_bytes"]
    with pytest.raises(ValueError, match=f"at least {smallest:,} bytes"):
        exported(model, tmp_path / "b", samples, arena=smallest - 16)
    report = exported(model, tmp_path / "c", samples, arena=smallest)
    assert report["micro"]["arena_bytes"] == smallest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_arena_is_kept_by_operators_in_parts(model, samples, tmp_path):
    path = tmp_path / "model.tflite"
    least = exported(model, path, samples)["micro"]["int8_arena_bytes"]
    report = exported(model, path, samples, arena=f"{least + 7000} B")
    assert report["micro"]["arena_bytes"] <= least + 7000
    rows = {row["tensor"]: row for row in report["tensors"]}
    assert (
        rows["wide"]["parts"] > 1 and "AddConcatenation" in report["micro"]["operators"]
    )
    assert report["micro"]["flash_bytes"] < report["micro"]["int8_flash_bytes"]


@pytest.mark.parametrize("platform, machine, hint", [
    ("linux", "x86_64", r"Install `tfcompress\[micro\]`"),
    ("darwin", "arm64", "Export on such a machine. Received: darwin, arm64"),
])  # fmt: skip
def test_missing_runtime_is_an_import_error(
    model, samples, tmp_path, monkeypatch, platform, machine, hint
):
    monkeypatch.setattr(micro_runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(micro_runtime.sys, "platform", platform)
    monkeypatch.setattr(micro_runtime.platform, "machine", lambda: machine)
    with pytest.raises(ImportError, match=hint):
        exported(model, tmp_path / "model.tflite", samples)
    assert not list(tmp_path.iterdir())


def test_source_holds_the_file_and_compiles(model, samples, tmp_path):
    report = exported(model, tmp_path / "2nd-net.cc", samples)
    exported(model, tmp_path / "model.tflite", samples)
    source = (tmp_path / "2nd-net.cc").read_text()
    header = (tmp_path / "2nd-net.h").read_text()
    content = bytes(int(x, 16) for x in re.findall(r"0x([0-9a-f]{2})", source))
    assert "alignas(16) const unsigned char model_2nd_net_data[]" in source
    assert content == (tmp_path / "model.tflite").read_bytes()
    arena = report["micro"]["arena_bytes"]
    assert f"model_2nd_net_arena_size = {arena};" in header
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    methods = "\n".join(
        f"int {x}() {{ ++count; return 0; }}" for x in methods_of(header)
    )
    (tmp_path / "main.cc").write_text(f"""
#include "2nd-net.h"
struct Resolver {{ unsigned int count = 0; {methods} }};
int main() {{
  Resolver resolver;
  const bool added = model_2nd_net_add_operators(resolver);
  const bool aligned = reinterpret_cast<unsigned long>(model_2nd_net_data) % 16 == 0;
  const bool counted = resolver.count == model_2nd_net_operators;
  return added && aligned && counted && model_2nd_net_size == {len(content)} ? 0 : 1;
}}
""")
    files = ["main.cc", "2nd-net.cc"]
    command = [compiler, "-std=c++17", "-Wall", "-Werror", *files, "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)


def methods_of(header):
    return re.findall(r"resolver\.(\w+)\(\)", header)


@pytest.mark.parametrize("factor", [1e-6, 1e-9])
def test_biases_of_tiny_kernels_fit_int32(factor, samples, tmp_path):
    """Batch normalization scales a channel by a small factor, and adds 1."""
    inputs = keras.Input((8, 8, 4))
    x = kl.Conv2D(64, 3, use_bias=False)(inputs)
    norm = kl.BatchNormalization()
    model = keras.Model(inputs, norm(x))
    gamma = np.ones(64)
    gamma[3] = factor
    norm.gamma.assign(gamma)
    norm.beta.assign(np.ones(64))
    student = tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))
    tiny = tfc.finalize(student)
    report = exported(tiny, tmp_path / "model.tflite", samples)
    assert report["agreement"]["max_abs_diff"] < 0.1


def test_ternary_convolution_hardly_differs_from_keras(tmp_path):
    inputs = keras.Input((16, 16, 8))
    student = tfc.compress(
        keras.Model(inputs, kl.Conv2D(16, 3, name="conv")(inputs)),
        tfc.PrunedTernary(first_last="ternary", activation_bits=8),
    )
    student.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(32, 16, 16, 8)).astype("float32")
    student.fit(x, np.zeros((32, 14, 14, 16)), verbose=0)
    tiny = tfc.finalize(student)
    tfc.export(tiny, tmp_path / "conv.tflite", x, target="micro")
    content = (tmp_path / "conv.tflite").read_bytes()
    with micro_runtime.MicroRuntime() as runtime:
        runner = micro_runtime.MicroRunner(runtime, content, "conv")
        found = np.concatenate([runner([sample[None]])[0] for sample in x])
    expected = tiny.predict(x, verbose=0)
    is_other = np.abs(found - expected) > 1e-3 * np.abs(expected).max()
    assert is_other.mean() < 0.01  # codes of -1 to 1 would be wrong ten times as often


def test_each_decode_stands_before_its_reader(model, samples, tmp_path):
    path = tmp_path / "model.tflite"
    exported(model, path, samples)
    file = flatbuffer.read(path.read_bytes())
    operators = file.subgraphs[0].operators
    names = [operator_name(file, x) for x in operators]
    assert names.count("TFLM_DECODE") >= 3
    for place, name in enumerate(names):
        if name == "TFLM_DECODE":  # what it computes is there for one operator only
            assert operators[place].outputs[0] == operators[place + 1].inputs[1]
