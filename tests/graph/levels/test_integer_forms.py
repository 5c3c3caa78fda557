"""Finalized models that compute as LiteRT's int8 operators do, to the bit."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tests.cases import few_quick
from tests.litert.models import operators
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.integer_forms import in_float
from tfcompress.layers import IntegerAdd, PackedProduct, RoundMeans


def images_net(x):
    """Convolutions with and without batch normalization, a sum and a mean."""
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.AveragePooling2D(2)(layers.MaxPooling2D(2)(x))
    return layers.Dense(5)(layers.Flatten()(x))


def operations_net(x):
    """A sum by an operator of Python, a concatenation, and a mean of all places."""
    x = layers.Conv2D(4, 3, padding="same")(x)
    y = x + layers.Conv2D(4, 1)(x)
    x = layers.ZeroPadding2D()(layers.Concatenate()([x, y]))
    x = layers.ReLU()(layers.Conv2D(6, 3)(x))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


def steps_net(x):
    """Layers of one axis, and a transposed one. Their files round other tensors too."""
    x = layers.Conv2DTranspose(2, 2, strides=2, activation="relu")(x)
    x = layers.Reshape((64, 32))(x)
    x = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
    x = layers.DepthwiseConv1D(3, padding="same")(x)
    x = layers.AveragePooling1D(4)(x)
    return layers.Dense(5)(layers.GlobalMaxPooling1D()(x))


SHAPE = (16, 16, 3)
# Numbers of layers that compute with integers.
NETS = {
    images_net: {PackedProduct: 4, IntegerAdd: 1, RoundMeans: 1},
    operations_net: {PackedProduct: 4, IntegerAdd: 1},
    steps_net: {PackedProduct: 4, RoundMeans: 1},
}
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(activation_bits=8),
    "uniform": lambda: tfc.Uniform(4, activation_bits=8),
}
each_net = pytest.mark.parametrize("build", NETS, ids=lambda x: x.__name__)


def images(count=256):
    x = np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")
    return x, np.digitize(x.mean((1, 2, 3)), [-0.04, -0.01, 0.01, 0.04])


def finalized(build, scheme="ternary"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    student = tfc.compress(keras.Model(inputs, build(inputs)), SCHEMES[scheme]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(3e-3), loss)
    student.fit(*images(), batch_size=64, epochs=2, verbose=0)
    return tfc.finalize(student)


def integer_layers(model):
    kinds = (PackedProduct, IntegerAdd, RoundMeans)
    named = Graph(model).layers().values()
    found = [x for x in named if getattr(x, "integer", True)]
    return {k: n for k in kinds if (n := sum(isinstance(x, k) for x in found))}


@pytest.mark.parametrize(
    "build, scheme",
    few_quick(
        itertools.product([images_net, operations_net], SCHEMES),
        lambda build, scheme: scheme == "ternary",
    ),
)
def test_int8_file_and_finalized_model_are_equal_to_the_bit(build, scheme, tmp_path):
    pytest.importorskip("litert_quantizer")
    tiny = finalized(build, scheme)
    assert integer_layers(tiny) == NETS[build]
    x, _ = images()
    report = tfc.export(
        tiny,
        tmp_path / "model.tflite",
        verify=x,
        optimize="latency",
        activations="int8",
        representative_data=x[:32],
    )
    assert report["ranges"]["calibrated"] == 0
    assert report["agreement"]["max_abs_diff"] == 0
    found = tfc.litert.predict(tmp_path / "model.tflite", x)
    np.testing.assert_array_equal(tiny.predict(x, verbose=0), found)


@each_net
def test_integer_model_is_saved_and_compiled(build, tmp_path):
    tiny = finalized(build)
    x, _ = images(32)
    expected = np.array(tiny(x))
    tiny.save(tmp_path / "tiny.keras")
    loaded = keras.models.load_model(tmp_path / "tiny.keras")
    assert integer_layers(loaded) == NETS[build]
    np.testing.assert_array_equal(loaded(x), expected)
    np.testing.assert_array_equal(tiny(x[:1]), expected[:1])
    compiled = tf.function(loaded, jit_compile=True)
    np.testing.assert_array_equal(compiled(x), expected)


@each_net
def test_float_file_of_an_integer_model_computes_in_float(build, tmp_path):
    tiny = finalized(build)
    x, _ = images(64)
    plain = in_float(tiny)
    assert integer_layers(plain) == {}
    assert in_float(plain) is plain
    step = float(np.array(Graph(tiny).calls[-1].operation.scale))
    assert np.abs(np.array(plain(x)) - np.array(tiny(x))).max() < 3.5 * step
    path = tmp_path / "model.tflite"
    tfc.export(tiny, path, verify=x)  # it raises an error unless it is proven
    expected = path.read_bytes()
    tfc.export(plain, path, verify=x)
    assert operators(path.read_bytes()) == operators(expected)


def test_layer_on_several_ranges_computes_in_float():
    def build(x):
        again = layers.Conv2D(3, 3, padding="same")
        x = layers.ReLU()(again(layers.ReLU()(again(x))))
        return layers.Dense(5)(layers.Flatten()(x))

    assert integer_layers(finalized(build)) == {PackedProduct: 1}


@pytest.mark.filterwarnings("ignore:Layer:UserWarning", "ignore:The stu:UserWarning")
@pytest.mark.parametrize(
    "scheme", [tfc.PrunedTernary(), tfc.Uniform(4)], ids=["float", "4 bits"]
)
def test_model_of_other_activation_bits_computes_in_float(scheme):
    inputs = keras.Input(SHAPE)
    student = tfc.compress(keras.Model(inputs, images_net(inputs)), scheme)
    assert integer_layers(tfc.finalize(student)) == {}
