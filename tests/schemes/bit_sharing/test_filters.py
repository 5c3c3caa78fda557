"""Filters that a gate before their readers can close, and those that stay."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from recipes.common.models import BUILDERS
from tests.graph.conv_graphs import conv, head
from tfcompress.graph.graph import Graph
from tfcompress.layers import FilterGate
from tfcompress.schemes.bit_sharing.filters import Filters, LayerFilters


def filters_of(function, shape=(8, 8, 3)):
    inputs = keras.Input(shape, name="image")
    return Filters(Graph(keras.Model(inputs, function(inputs))))


def block(x):
    x = conv("stem", 4)(x)
    y = layers.BatchNormalization(name="norm")(conv("first", 6)(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    x = layers.Add(name="add")([x, conv("second", 4)(layers.ReLU()(y))])
    return layers.Dense(2, name="dense")(layers.Flatten()(x))


def test_filters_of_a_residual_block_are_kept_where_it_adds():
    filters = filters_of(block)
    added = "merged with others by 'add' (Add)"
    assert filters.by_layer == {
        "stem": LayerFilters(4, ("first", "dense"), added),
        "first": LayerFilters(6, ("second",), ""),
        "second": LayerFilters(4, ("first", "dense"), added),
        "dense": LayerFilters(2, (), "the model returns them"),
    }
    # `first` and `dense` read channels that two layers have made.
    assert filters.source == {"norm": "first", "depthwise": "first", "second": "first"}


def conv_twice(x):
    layer = conv("conv", 3)
    return head(layer(layer(x)))


def consumer_twice(x):
    x = conv()(x)
    layer = conv("shared", 2)
    return layer(x), layer(layers.ReLU()(x))


def gated(x):
    x = conv()(x)
    return head(layers.Multiply(name="multiply")([x, conv("gate")(x)]))


def concatenated(x):
    return head(layers.Concatenate(name="concat")([conv()(x), conv("other")(x)]))


def padded(x):
    return head(ops.pad(conv()(x), [[0, 0], [0, 0], [0, 0], [1, 1]]))


def multiplied(x):
    return head(layers.DepthwiseConv2D(3, depth_multiplier=2)(conv()(x)))


def channels_first(x):
    x = layers.Permute((3, 1, 2))(conv()(x))
    return conv("head", data_format="channels_first")(x)


KEPT = {
    "twice": (conv_twice, "'conv' is called 2 times"),
    "consumer_twice": (consumer_twice, "'shared' is called 2 times"),
    "gated": (gated, "merged with others by 'multiply' (Multiply)"),
    "groups": (
        lambda x: head(conv(filters=6, groups=2)(conv("stem")(x))),
        "'conv' has groups",
    ),
    "read_in_groups": (
        lambda x: head(conv("two", groups=2)(conv()(x))),
        "'two' has groups",
    ),
    "concatenated": (
        concatenated,
        "'head' reads others too, or not each of them in turn",
    ),
    "padded": (padded, "'head' reads others too, or not each of them in turn"),
    "sliced": (
        lambda x: head(conv()(x)[..., :2]),
        "'head' reads others too, or not each of them in turn",
    ),
    "multiplied": (multiplied, "'head' reads others too, or not each of them in turn"),
    "channels_first": (channels_first, "'head' is channels_first"),
    "softmax": (
        lambda x: head(conv(activation="softmax")(x)),
        "the activation softmax of 'conv' may mix channels",
    ),
}


@pytest.mark.parametrize("function, reason", KEPT.values(), ids=KEPT)
def test_filters_are_kept_for_a_reason(function, reason):
    assert filters_of(function).by_layer["conv"].why_kept == reason


REMOVABLE = {
    "transposed convolution": lambda x: layers.Conv2DTranspose(2, 3)(conv()(x)),
    "separable convolution": lambda x: layers.SeparableConv2D(2, 3)(conv()(x)),
    "flattened": lambda x: layers.Dense(2)(layers.Flatten()(conv()(x))),
    "normalized": lambda x: head(layers.BatchNormalization(axis=3)(conv()(x))),
    "of vectors": lambda x: layers.Dense(2)(
        layers.BatchNormalization(axis=1)(layers.Flatten()(conv()(x)))
    ),
    "times itself": lambda x: head(layers.Multiply()([y := conv()(x), y])),
    "twice in a row": lambda x: head(layers.Concatenate()([y := conv()(x), y])),
}


@pytest.mark.parametrize("function", REMOVABLE.values(), ids=REMOVABLE)
def test_filters_are_removable(function):
    assert filters_of(function).by_layer["conv"].why_kept == ""


BLOCKS = [(stage, block) for stage in (1, 2, 3) for block in (1, 2, 3)]
REPEATS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3, 7: 1}  # MobileNetV2's blocks per stage
REMOVABLE_IN = {
    "lenet5": {"conv1", "conv2", "fc1"},
    "resnet8": {f"stage{stage}_conv1" for stage in (1, 2, 3)},
    "resnet20": {f"stage{stage}_block{block}_conv1" for stage, block in BLOCKS},
    "vgg16": {
        f"conv{stage}_{index}"
        for stage, depth in enumerate((2, 2, 3, 3, 3), start=1)
        for index in range(1, depth + 1)
    },
    # The first block expands by one; stages of one block add nothing.
    "mobilenetv2": {"stem_conv", "head_conv"}
    | {f"stage{stage}_block1_project" for stage in (1, 7)}
    | {
        f"stage{stage}_block{block}_expand"
        for stage, blocks in REPEATS.items()
        for block in range(1, blocks + 1)
        if stage > 1
    },
}


@pytest.mark.parametrize("name", REMOVABLE_IN)
def test_removable_filters_of_builtin_networks(name):
    filters = Filters(Graph(BUILDERS[name]((28, 28, 1), 10)))
    assert {
        n for n, found in filters.by_layer.items() if not found.why_kept
    } == REMOVABLE_IN[name]


def nested_reader(x):
    """The filters of a layer outside that a layer inside a nested model reads."""
    inputs = keras.Input((8, 8, 4))
    y = layers.Conv2D(3, 1, name="inner")(layers.ReLU()(inputs))
    x = keras.Model(inputs, y, name="body")(conv("outer")(x))
    return layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    "function, consumer",
    [
        (nested_reader, "body/inner"),
        (REMOVABLE["transposed convolution"], "conv2d_transpose"),
        (REMOVABLE["twice in a row"], "head"),
    ],
)
def test_student_with_closed_gates_predicts_like_the_model_without_the_filters(
    function, consumer
):
    inputs = keras.Input((8, 8, 3), name="image")
    model = keras.Model(inputs, function(inputs))
    scheme = tfc.BitSharing(penalty=0.0, group_size=1)
    student = tfc.compress(model, scheme)
    named = Graph(student).layers()
    (gate,) = [
        layer
        for layer in named.values()
        if isinstance(layer, FilterGate) and layer.source in ("conv", "outer")
    ]
    gate.freeze(np.array([True, False, True, False]))
    for layer in named.values():
        for quantizer in ("kernel_quantizer", "input_quantizer"):
            gates = getattr(getattr(layer, quantizer, None), "gates", None)
            if gates is not None:
                gates.freeze(8)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = ops.convert_to_numpy(student(x, training=False))
    tiny = tfc.finalize(student)
    found = ops.convert_to_numpy(tiny(x, training=False))
    assert len(Filters(Graph(tiny)).by_layer[gate.source].consumers) == 1
    assert Filters(Graph(tiny)).by_layer[gate.source].count == 2
    assert consumer in Graph(tiny).layers()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
