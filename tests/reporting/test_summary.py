import pathlib

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tests.free_sizes import free_model
from tfcompress.layers import PackedConv2D, PackedDense, QuantConv2D
from tfcompress.quantizers import Uniform


def packed(layer, zeros):
    """Fills a built packed layer with ones and with `zeros` zeros."""
    codes = np.ones(layer.kernel_shape, np.int8)
    codes.reshape(-1)[:zeros] = 0
    layer.set_kernel(codes, np.ones(layer.kernel_scale.shape))


def mixed_model():
    """Returns a model with one layer of each kind that the table distinguishes."""
    stem = PackedConv2D(16, 3, padding="same", kernel_bits=8, name="stem")
    block = PackedConv2D(32, 3, strides=2, use_bias=False, kernel_bits=3, name="block")
    classifier = PackedDense(10, kernel_bits=2, name="classifier")
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 16)),
            block,
            layers.BatchNormalization(name="norm"),
            QuantConv2D(4, 1, input_quantizer=Uniform(8), name="mix"),
        ],
        name="stage",
    )
    inputs = keras.Input((12, 12, 1))
    x = layers.ReLU()(inner(stem(inputs)))
    cell = layers.LSTMCell(6)
    x = layers.RNN(cell, name="reader")(layers.Reshape((25, 4))(x))
    model = keras.Model(inputs, classifier(x))
    packed(stem, zeros=0)
    packed(block, zeros=3 * 3 * 16 * 32 // 4)
    packed(classifier, zeros=6 * 10 // 2)
    model.get_layer("stage").get_layer("mix").set_weights(
        [np.ones((1, 1, 32, 4)), np.zeros(4)]
    )
    return model


SNAPSHOT = pathlib.Path(__file__).with_name("summary_snapshot.txt")


def test_summary_equals_its_snapshot():
    text = tfc.summary(mixed_model())
    assert text + "\n" == SNAPSHOT.read_text(encoding="utf-8")


def test_summary_wraps_long_names_within_120_characters():
    inputs = keras.Input((8,))
    name = "a_name_that_someone_made_up_of_everything_that_this_layer_is_" * 3
    text = tfc.summary(keras.Model(inputs, layers.Dense(4, name=name)(inputs)))
    assert max(map(len, text.splitlines())) <= 120
    rows = text.split("─\n")[1].splitlines()
    assert name in "".join(row[2:].partition(" ")[0] for row in rows)


def test_summary_of_a_student_shows_bits_of_its_codes():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.Conv2D(4, 3, name="middle")(x)
    outputs = layers.Dense(2, name="last")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    student = tfc.compress(model, tfc.PrunedTernary())
    lines = tfc.summary(student).splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in lines if line}
    assert rows["first"].startswith("first QuantConv2D 3 x 3 x 3 x 4 8 32")
    assert rows["middle"].startswith("middle QuantConv2D 3 x 3 x 4 x 4 2 32")
    assert rows["last"].startswith("last QuantDense 64 x 2 8 32")


def test_summary_of_free_sizes_says_that_operations_are_unknown():
    model = free_model("images")
    text = tfc.summary(model)
    rows = [line.split() for line in text.splitlines() if line.strip()]
    macs = [row[-2] for row in rows if row[0] in ("conv0", "head", "total")]
    assert macs[:3] == ["-", "64", "-"]
    assert ["BOPs", "-", "-"] in rows
    assert "sizes of 3 layers open. summary(model, input_shape=(224, 224, 3))" in text
    known = tfc.summary(model, input_shape=(16, 16, 3))
    assert "unknown" not in known and f"{27 * 8 * 16 * 16:,}" in known


def test_summary_of_a_student_counts_at_the_size_of_its_scheme():
    scheme = tfc.BitSharing(bops="1/20", input_shape=(16, 16, 3))
    student = tfc.compress(free_model("images"), scheme)
    text = tfc.summary(student)
    assert text == tfc.summary(student, input_shape=(16, 16, 3))
    assert "unknown" not in text and f"{27 * 8 * 16 * 16:,}" in text
