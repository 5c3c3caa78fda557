"""Learned ranges of the tensors between layers, and the int8 files that have them."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.cases import few_quick
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.biases import round_biases
from tfcompress.layers import QuantizedTensor

SHAPE = (8, 8, 3)


def conv(x, filters=8, **options):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
    return layers.BatchNormalization()(x)


def residual(x):
    x = shortcut = layers.ReLU()(conv(x))
    x = layers.ReLU()(layers.Add()([conv(x), shortcut]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return layers.Dense(4, activation="softmax", name="head")(x)


def joined(x):
    """A concatenation and a maximum, max pooling, and the mean of each channel."""
    a, b = layers.ReLU()(conv(x)), conv(x)
    x = layers.MaxPooling2D()(layers.Concatenate()([a, b]))
    x = layers.Maximum()([conv(x), layers.Conv2D(8, 1)(x)])
    return layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))


def gated(x):
    """A channel attention with a sigmoid, as MobileNetV3 has it."""
    x = layers.ReLU(max_value=6)(conv(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    x = layers.Conv2D(8, 3, activation="tanh")(layers.Multiply()([x, gate]))
    return layers.Dense(4, name="head")(layers.Flatten()(x))


def shared(x):
    """One convolution and one ReLU in two places, and operations of `keras.ops`."""
    again, relu = layers.Conv2D(3, 3, padding="same"), layers.ReLU()
    a = relu(again(x))
    x = relu(again(a) + a)
    x = keras.ops.reshape(x * 0.5, (-1, 192))
    return layers.Dense(4, name="head")(x)


def nested(x):
    inputs = keras.Input(SHAPE)
    y = layers.Add()([conv(inputs, 3), inputs])
    block = keras.Model(inputs, layers.ReLU()(y), name="block")
    x = block(block(x))
    return layers.Dense(4, name="head")(layers.Flatten()(x))


def two_outputs(x):
    x = layers.ReLU()(conv(x))
    pooled = layers.GlobalAveragePooling2D()(x)
    head = layers.Dense(4, activation="softmax", name="head")(pooled)
    other = layers.Add(name="sum")([conv(x), x])
    return {"classes": head, "image": other}


pytestmark = pytest.mark.filterwarnings(
    "ignore:LiteRT and Keras predict the same class:UserWarning",
)

NETS = (residual, joined, gated, shared, nested, two_outputs)
each_net = pytest.mark.parametrize("build", NETS)
one_net_or_all = pytest.mark.parametrize(
    "build", few_quick(NETS, lambda build: build is residual)
)
two_nets_or_all = pytest.mark.parametrize(
    "build", few_quick(NETS, lambda build: build in (joined, two_outputs))
)


def model_of(build):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, build(inputs), name=build.__name__)


def images(count=256):
    x = np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")
    return x, np.argmax(x.mean((1, 2)), axis=1)


def fitted(student, epochs=2):
    x, y = images()
    targets, loss = y, keras.losses.SparseCategoricalCrossentropy()
    if "head" in student.output_names and len(student.output_names) == 1:
        is_softmax = student.name == "residual"
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not is_softmax)
    else:
        targets = {"classes": y, "image": np.zeros((len(x), 8, 8, 8))}
        loss = {"classes": loss, "image": "mse"}
    student.compile(keras.optimizers.Adam(3e-3), loss)
    student.fit(x, targets, batch_size=64, epochs=epochs, verbose=0)
    return student


def tensors(student):
    """`{name: layer}` of the layers that quantize tensors."""
    named = Graph(student).layers().items()
    return {name: x for name, x in named if isinstance(x, QuantizedTensor)}


def own_ranges(student):
    named = Graph(student).layers().items()
    return {n for n, x in named if getattr(x, "input_quantizer", None) is not None}


def compressed(build):
    return tfc.compress(model_of(build), tfc.PrunedTernary(activation_bits=8))


def test_student_quantizes_each_stored_tensor_once():
    student = compressed(residual)
    graph = Graph(student)
    quantized = {n: len(graph.calls_of(x)) for n, x in tensors(student).items()}
    # The ReLU that two layers read, the operand, the sum with its mean, the logits.
    assert sorted(quantized.values()) == [1, 1, 1, 2]
    assert "head_sums" in quantized
    assert own_ranges(student) == {"conv2d"}  # it reads the model's input
    assert student.output_names == ["head"]


def test_tensors_of_a_concatenation_have_one_range():
    student = compressed(joined)
    graph = Graph(student)
    counts = sorted(len(graph.calls_of(x)) for x in tensors(student).values())
    # The model's input; both parts of the concatenation and of the maximum; the logits.
    assert counts == [1, 1, 2, 2]


def test_probabilities_between_layers_have_the_step_of_int8_operators():
    steps = {
        x.quantizer.fixed_step
        for x in tensors(compressed(gated)).values()
        if hasattr(x.quantizer, "fixed_step")
    }
    assert steps == {1 / 256, 1 / 128}


@two_nets_or_all
def test_student_keeps_the_names_of_outputs(build):
    model = model_of(build)
    student = compressed(build)
    assert student.output_names == model.output_names
    assert tfc.finalize(fitted(student, 1)).output_names == model.output_names


@pytest.mark.parametrize(
    "scheme",
    [
        tfc.PrunedTernary(activation_bits=4),
        tfc.PrunedTernary(),
        tfc.BitSharing(bops="1/40"),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
def test_student_of_other_bits_quantizes_inputs_of_layers_alone(scheme):
    assert not tensors(tfc.compress(model_of(residual), scheme))


@each_net
def test_int8_file_computes_what_was_trained(build, tmp_path):
    pytest.importorskip("litert_quantizer")
    tiny = tfc.finalize(fitted(compressed(build)))
    x, _ = images()
    path = tmp_path / "model.tflite"
    report = tfc.export(
        tiny,
        path,
        verify=x,
        optimize="latency",
        activations="int8",
        representative_data=x[:64],
    )
    assert report["ranges"]["calibrated"] == 0 < report["ranges"]["learned"]
    assert report["agreement"]["top1"] >= 0.98
    # Probabilities that the model returns are not rounded.
    largest = {residual: 0.5 / 256, joined: 0.0, two_outputs: 0.5 / 256}
    if build in largest:
        assert report["agreement"]["max_abs_diff"] <= largest[build] + 1e-6


@two_nets_or_all
def test_biases_end_in_units_of_int8_operators(build, monkeypatch):
    student = fitted(compressed(build), 1)
    finalization = importlib.import_module("tfcompress.core.finalize")
    monkeypatch.setattr(finalization, "round_biases", lambda model: None)
    tiny = tfc.finalize(student)
    biases = [x for x in tiny.weights if x.name == "bias"]
    before = [keras.ops.convert_to_numpy(x) for x in biases]
    round_biases(tiny)
    assert before
    for bias, expected in zip(biases, before, strict=True):
        np.testing.assert_allclose(bias, expected, atol=1e-5)


@one_net_or_all
def test_student_on_tensor_ranges_is_saved_and_trained_on(build, tmp_path):
    student = fitted(compressed(build))
    x, _ = images(32)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    for a, b in zip(
        keras.tree.flatten(student(x)), keras.tree.flatten(loaded(x)), strict=True
    ):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    before = [q.quantizer.scale_value() for q in tensors(loaded).values()]
    fitted(loaded, 1)
    after = [q.quantizer.scale_value() for q in tensors(loaded).values()]
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= len(after) - 2


def test_finalized_biases_are_whole_units_of_int8_operators():
    tiny = tfc.finalize(fitted(compressed(residual)))
    first, head = tiny.get_layer("conv2d"), tiny.get_layer("head_unrounded")
    for layer, name in ((first, "conv2d_input"), (head, None)):
        before = np.array(layer.bias)
        if name:
            scale = np.array(layer.kernel_scale).reshape(-1)
            unit = float(np.array(tiny.get_layer(name).scale)) * scale
            np.testing.assert_allclose(
                before / unit, np.round(before / unit), atol=0.01
            )
        round_biases(tiny)
        np.testing.assert_array_equal(np.array(layer.bias), before)


def test_costs_count_the_bits_of_tensors_that_several_layers_read():
    student = compressed(residual)
    bits = {x.name: x.activation_bits for x in tfc.cost.layer_costs(student)}
    counted = {n: b for n, b in bits.items() if b is not None}
    assert set(counted.values()) == {8}
    tiny = tfc.finalize(fitted(student, 1))
    found = [x.activation_bits for x in tfc.cost.layer_costs(tiny)]
    assert set(found) == {8}


def test_decomposition_trains_ranges_and_removes_channels(tmp_path):
    pytest.importorskip("litert_quantizer")
    scheme = tfc.Decomposition(macs="0.7", activation_bits=8)
    assert type(scheme).from_config(scheme.get_config()).activation_bits == 8
    student = fitted(tfc.compress(model_of(residual), scheme), 4)
    tiny = tfc.finalize(student)
    x, _ = images()
    np.testing.assert_allclose(tiny(x), student(x), atol=0.05)
    report = tfc.export(
        tiny,
        tmp_path / "model.tflite",
        verify=x,
        optimize="latency",
        activations="int8",
        representative_data=x[:64],
    )
    assert report["ranges"]["learned"] == 5
    assert report["agreement"]["top1"] >= 0.97


@pytest.mark.parametrize("bits", [4, 1, "8"])
def test_decomposition_refuses_other_activation_bits(bits):
    with pytest.raises(ValueError, match="8 or None"):
        tfc.Decomposition(macs="1/2", activation_bits=bits)


def test_dequantize_refuses_a_student_on_tensor_ranges():
    with pytest.raises(ValueError, match="float activations"):
        tfc.dequantize(compressed(residual))


def test_diverged_training_on_tensor_ranges_ends_with_one_warning(recwarn):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            kernel = next(x for x in self.model.weights if "kernel" in x.path)
            kernel.assign(np.full(kernel.shape, np.nan))

    student = tfc.compress(model_of(residual), tfc.Uniform(4, activation_bits=8))
    student.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="its weights are NaN"):
        student.fit(*images(64), epochs=1, verbose=0, callbacks=[Poison()])
    assert not [x for x in recwarn if x.category is RuntimeWarning]


def test_two_replicas_train_tensor_ranges(two_replicas):
    with two_replicas.scope():
        student = compressed(residual)
        student = fitted(student, 1)
    x, _ = images(64)
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(tiny(x), student(x), atol=0.01)
