"""Files in which all operators compute with integers."""

import sys

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import tfcompress as tfc
from tests.litert.models import MODELS, check_native_types, operators
from tests.litert.packed_models import make_packed, quantize_activation
from tfcompress.compat.litert_private import schema
from tfcompress.graph.signature import functional
from tfcompress.litert import export, predict
from tfcompress.litert.flatbuffer import constant, operator_name, read
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.runtime import Runner

pytest.importorskip("litert_quantizer")
pytestmark = pytest.mark.filterwarnings(
    "ignore:LiteRT and Keras predict the same class:UserWarning"
)


@pytest.mark.parametrize("build", MODELS)
def test_integer_export_takes_every_kind_of_model(build, tmp_path):
    model = make_packed(keras.Model(*build()), bits=(2, 3, 8))
    samples = [np.concatenate([x] * 2) for x in next(iter(Samples(model, None)))]
    if model.inputs[0].shape[0]:
        samples = [x[: model.inputs[0].shape[0]] for x in samples]
    path = tmp_path / "model.tflite"
    report = export(
        model,
        path,
        optimize="latency",
        activations="int8",
        representative_data=samples,
    )
    check_native_types(report, model)
    assert report["ranges"]["learned"] == 0 < report["ranges"]["calibrated"]


def residual():
    """Plain model with quantized inputs of several bits; two layers read one sum."""
    inputs = keras.Input((12, 12, 3))
    x = kl.Conv2D(8, 3, padding="same")(quantize_activation(8, True, 0.03)(inputs))
    x = shortcut = kl.ReLU()(x)
    x = kl.Conv2D(8, 3, padding="same")(quantize_activation(4, scale=0.2)(x))
    x = kl.ReLU()(kl.Add()([x, shortcut]))
    a = kl.DepthwiseConv2D(3, padding="same")(quantize_activation(4, scale=0.25)(x))
    b = kl.Conv2D(8, 1)(quantize_activation(2, scale=0.8)(x))
    x = kl.GlobalAveragePooling2D()(kl.ReLU()(kl.Add()([a, b])))
    outputs = kl.Dense(10, name="head")(quantize_activation(8, scale=0.02)(x))
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def exported_residual(tmp_path_factory):
    """`(model, samples, path, report)` of the residual model's integer file."""
    plain = residual()
    model = make_packed(plain, bits=(8, 4, 2))
    for old, new in zip(plain.layers, model.layers, strict=True):
        if isinstance(new, tfc.layers.QuantizeActivation):
            new.set_scale(float(np.array(old.scale)))
        if isinstance(new, tfc.layers.PackedKernel):
            new.bias.assign(np.array(new.bias) * 0.1)
    samples = np.random.default_rng(0).normal(size=(200, 12, 12, 3)).astype("float32")
    path = tmp_path_factory.mktemp("integer") / "model.tflite"
    report = export(
        model,
        path,
        verify=samples,
        optimize="latency",
        activations="int8",
        representative_data=samples[:64],
    )
    return model, samples, path, report


def test_integer_file_has_the_learned_ranges(exported_residual):
    model, _, path, report = exported_residual
    # Three inputs of layers, and the sum that two of them read. The other results of
    # layers and sums have no levels in the model.
    assert report["ranges"] == {"learned": 4, "calibrated": 5}
    parsed = read(path.read_bytes())
    (graph,) = parsed.subgraphs
    scales = {}
    for operator in graph.operators:
        kernel = graph.tensors[operator.inputs[min(1, len(operator.inputs) - 1)]]
        source = graph.tensors[operator.inputs[0]].quantization
        if kernel.name and operator_name(parsed, operator) not in ("QUANTIZE",):
            scales[kernel.name.decode()] = source.scale[0]
    layers = [x for x in model.layers if isinstance(x, tfc.layers.PackedKernel)]
    expected = [0.03, 0.2, 0.25, 0.8, 0.02]
    assert sorted(scales[x.name] for x in layers) == pytest.approx(sorted(expected))


def test_integer_file_counts_biases_in_units_of_both_scales(exported_residual):
    model, _, path, _ = exported_residual
    parsed = read(path.read_bytes())
    (graph,) = parsed.subgraphs
    checked = 0
    for operator in graph.operators:
        if len(operator.inputs) != 3:
            continue
        source, kernel, bias = (graph.tensors[i] for i in operator.inputs)
        layer = model.get_layer(kernel.name.decode())
        assert bias.type == schema.TensorType.INT32
        unit = source.quantization.scale[0] * kernel.quantization.scale
        np.testing.assert_array_equal(bias.quantization.scale, unit)
        exact = np.array(layer.bias, np.float64) / unit
        np.testing.assert_array_equal(
            constant(parsed, bias).view("<i4"), np.round(exact)
        )
        checked += 1
    assert checked == 5


def test_integer_file_with_int8_ends_returns_the_same_codes(
    exported_residual, tmp_path
):
    """Only the two conversions are missing."""
    model, samples, path, report = exported_residual
    ends = tmp_path / "ends.tflite"
    with_ends = export(
        model,
        ends,
        verify=samples,
        optimize="latency",
        activations="int8",
        representative_data=samples[:64],
        io="int8",
    )
    assert with_ends["agreement"] == report["agreement"]
    np.testing.assert_array_equal(predict(ends, samples), predict(path, samples))
    runner = Runner(ends.read_bytes())
    (_, first), (_, last) = runner.inputs[0], runner.outputs[0]
    assert first["dtype"] == last["dtype"] == np.int8
    scale, zero_point = first["quantization"]
    codes = np.clip(np.round(samples / scale) + zero_point, -128, 127).astype("int8")
    np.testing.assert_array_equal(runner([codes])[0], predict(path, samples))
    with pytest.raises(ValueError, match="expects inputs of dtype.*int8.*int64"):
        runner([codes.astype("int64")[:, :5]])


def test_export_refuses_int8_ends_of_float_files(tmp_path, exported_residual):
    with pytest.raises(ValueError, match="io='int8' is expected with activations"):
        export(exported_residual[0], tmp_path / "model.tflite", io="int8")


def test_integer_file_has_no_operator_on_floats(exported_residual):
    *_, path, _ = exported_residual
    parsed = read(path.read_bytes())
    (graph,) = parsed.subgraphs
    for operator in graph.operators:
        if operator_name(parsed, operator) not in ("QUANTIZE", "DEQUANTIZE"):
            for index in (*operator.inputs, *operator.outputs):
                assert graph.tensors[index].type != schema.TensorType.FLOAT32
    assert operators(path.read_bytes())[0] == "QUANTIZE"
    assert operators(path.read_bytes())[-1] == "DEQUANTIZE"


def test_integer_file_predicts_nearly_like_keras(exported_residual):
    model, samples, path, report = exported_residual
    outputs = predict(path, samples)
    expected = model.predict(samples, verbose=0)
    difference = np.sqrt(np.square(outputs - expected).mean())
    assert difference < 0.1 * np.sqrt(np.square(expected).mean())
    assert report["agreement"]["top1"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activations": "int4"}, "`activations` is one of .*activations='int4'"),
        ({"optimize": "latency"}, "`representative_data` is expected: .* None"),
        ({"representative_data": [1]}, "with optimize='latency'"),
    ],
)
def test_export_refuses_arguments_that_contradict_int8(digit_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        export(digit_model, "x.tflite", **{"activations": "int8", **arguments})


def test_export_refuses_representative_data_of_float_files(digit_model):
    with pytest.raises(ValueError, match="`representative_data` is expected with"):
        export(digit_model, "x.tflite", representative_data=[1])


def test_export_refuses_representative_data_of_other_shapes(digit_model):
    with pytest.raises(ValueError, match="`representative_data` should hold batches"):
        export(
            digit_model,
            "x.tflite",
            optimize="latency",
            activations="int8",
            representative_data=np.ones((4, 3, 3)),
        )


def test_integer_export_names_the_package_to_install(
    digit_model, images, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    with pytest.raises(ImportError, match=r"Install `tfcompress\[int8\]`"):
        export(
            functional(digit_model),
            tmp_path / "model.tflite",
            optimize="latency",
            activations="int8",
            representative_data=images,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("io", ["float", "int8"])
def test_integer_file_reads_the_rows_of_tokens_in_float32(io, tmp_path):
    inputs = keras.Input((6,))  # float32
    x = kl.Flatten()(kl.Embedding(1000, 4)(inputs))
    model = make_packed(keras.Model(inputs, kl.Dense(40, use_bias=False)(x)))
    tokens = np.random.default_rng(0).integers(0, 1000, (64, 6)).astype("float32")
    path = tmp_path / "model.tflite"
    report = tfc.export(
        model, path, tokens, optimize="latency", activations="int8",
        representative_data=tokens, io=io,
    )  # fmt: skip
    spread = np.std(model.predict(tokens, verbose=0), axis=0).max()
    assert report["agreement"]["max_abs_diff"] < 0.2 * spread


def test_shape_of_a_tensor_leaves_its_learned_range(tmp_path):
    """Flatten with a free batch reads the shape of a tensor, and none of its values."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    body = [kl.Conv2D(8, 3, activation="relu"), kl.Flatten(), kl.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *body])
    student = tfc.compress(model, tfc.PrunedTernary(activation_bits=8))
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    student.fit(images, np.arange(64) % 10, verbose=0)
    samples = 3 * images  # beyond the learned ranges
    report = tfc.export(
        tfc.finalize(student), tmp_path / "model.tflite", samples, optimize="latency",
        activations="int8", representative_data=samples,
    )  # fmt: skip
    assert report["ranges"]["calibrated"] == 0
    assert report["agreement"]["max_abs_diff"] == 0


@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool"])
def test_integer_file_takes_and_returns_integers_of_the_model(dtype, io, tmp_path):
    inputs = keras.Input((12,), dtype=dtype)
    x = kl.Dense(8, activation="relu")(ops.cast(kl.Reshape((3, 4))(inputs), "float32"))
    scores = kl.Dense(4)(kl.Flatten()(x))
    codes = ops.cast(ops.clip(8 * scores, -100, 100), "int8")
    model = make_packed(keras.Model(inputs, [scores, codes]), bits=(8,))
    given = np.random.default_rng(0).integers(0, 2, (64, 12)).astype(dtype)
    path = tmp_path / "model.tflite"
    report = tfc.export(
        model, path, given, optimize="latency", activations="int8",
        representative_data=given, io=io,
    )  # fmt: skip
    runner = Runner(path)
    assert runner.inputs[0][1]["dtype"] is np.dtype(dtype).type
    assert runner.outputs[1][1]["dtype"] is np.int8
    expected = model.predict(given, verbose=0)
    for found, right in zip(predict(path, given).values(), expected, strict=True):
        assert np.abs(found - right.astype(float)).max() < 0.1 * np.abs(right).max()
    assert report["ranges"]["learned"] == 0


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("factor", [1e-7, 1e-9])
def test_channel_whose_kernel_is_scaled_to_nearly_nothing_keeps_its_bias(
    factor, bits, tmp_path
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4))
    x = kl.Conv2D(8, 3, use_bias=False)(inputs)
    norm = kl.BatchNormalization()
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(kl.ReLU()(norm(x)))))
    gamma = np.ones(8)
    gamma[3] = factor
    norm.gamma.assign(gamma)
    norm.beta.assign(np.full(8, 0.7))
    images = np.random.default_rng(0).normal(size=(64, 6, 6, 4)).astype("float32")
    student = tfc.compress(model, tfc.PrunedTernary(activation_bits=bits))
    student.compile(keras.optimizers.SGD(0.0), "mse")
    student.fit(images, np.zeros((64, 3)), verbose=0)
    tiny = tfc.finalize(student)
    trained = student.predict(images, verbose=0)
    np.testing.assert_allclose(
        tiny.predict(images, verbose=0), trained, atol=0.05 * np.abs(trained).max()
    )
    report = tfc.export(
        tiny, tmp_path / "model.tflite", images, optimize="latency",
        activations="int8", representative_data=images,
    )  # fmt: skip
    most = 0.0 if bits else 0.05 * np.abs(trained).max()
    assert report["agreement"]["max_abs_diff"] <= most
