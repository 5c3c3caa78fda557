import keras
import numpy as np
import pytest
from keras import layers, ops

from recipes.common.models import BUILDERS
from tfcompress.layers import QuantConv2D, QuantDense
from tfcompress.quantizers import Ternary
from tfcompress.surgery import channels
from tfcompress.surgery.channels import ChannelSpace, channel_spaces, input_spaces
from tfcompress.surgery.graph import Graph


def graph_of(function, shape=(8, 8, 3)):
    inputs = keras.Input(shape, name="image")
    return Graph(keras.Model(inputs, function(inputs)))


def conv(name="conv", filters=4, size=3, **config):
    return layers.Conv2D(filters, size, padding="same", name=name, **config)


def head(x):
    return conv("head", 2)(x)


def removable(graph):
    return [name for name, space in channel_spaces(graph).items() if not space.tied]


def test_a_chain_with_everything_that_leaves_channels_alone():
    def chain(x):
        x = conv(activation="relu6")(x)
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.Activation("gelu")(layers.LeakyReLU()(layers.ReLU(6)(x)))
        x = layers.Rescaling(2.0, 1.0)(layers.PReLU(name="prelu")(x))
        x = ops.relu6(ops.abs(keras.activations.relu(x, negative_slope=0.1)))
        x = layers.SpatialDropout2D(0.1)(layers.Dropout(0.1)(layers.Identity()(x)))
        x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
        x = layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x))
        x = layers.MaxPooling2D()(layers.AveragePooling2D(1)(x))
        x = layers.GlobalAveragePooling2D(keepdims=True)(layers.UpSampling2D()(x))
        return layers.Dense(2, activation="softmax", name="dense")(x)

    graph = graph_of(chain)
    spaces = channel_spaces(graph)
    carriers = ("norm", "prelu", "depthwise")
    assert spaces["conv"] == ChannelSpace("conv", 4, ("dense",), carriers, "")
    inputs = input_spaces(graph)
    assert list(inputs) == [*carriers, "dense"]
    for space in inputs.values():
        assert space.producer == "conv"
        np.testing.assert_array_equal(space.channel_of, range(4))


def test_residual_block_with_quantized_layers():
    def block(x):
        x = conv("stem", 4)(x)
        y = QuantConv2D(6, 3, padding="same", name="first", kernel_quantizer=Ternary())(
            x
        )
        y = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
        y = QuantConv2D(
            4, 3, padding="same", name="second", kernel_quantizer=Ternary()
        )(y)
        x = layers.Flatten()(layers.Add(name="add")([x, y]))
        return QuantDense(2, name="dense", kernel_quantizer=Ternary())(x)

    graph = graph_of(block)
    spaces = channel_spaces(graph)
    added = "merged with others by 'add' (Add)"
    assert spaces == {
        "stem": ChannelSpace("stem", 4, ("first",), (), added),
        "first": ChannelSpace("first", 6, ("second",), ("norm",), ""),
        "second": ChannelSpace("second", 4, (), (), added),
        "dense": ChannelSpace("dense", 2, (), (), "the model returns them"),
    }
    producers = {name: space.producer for name, space in input_spaces(graph).items()}
    assert producers == {"first": "stem", "norm": "first", "second": "first"}


def test_flatten_and_depth_multipliers_repeat_channels():
    def repeated(x):
        x = layers.Conv1D(3, 1, name="conv")(x)
        x = layers.DepthwiseConv1D(1, depth_multiplier=2, name="depthwise")(x)
        x = layers.BatchNormalization(name="norm")(x)
        return layers.Dense(1, name="dense")(layers.Flatten()(x))

    graph = graph_of(repeated, (4, 5))
    assert removable(graph) == ["conv"]
    inputs = input_spaces(graph)
    once = [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(inputs["depthwise"].channel_of, [0, 1, 2])
    np.testing.assert_array_equal(inputs["norm"].channel_of, once)
    np.testing.assert_array_equal(inputs["dense"].channel_of, 4 * once)


def test_all_readers_of_a_tensor_are_consumers():
    def fork(x):
        x = conv()(x)
        y = layers.ReLU()(x)
        return [conv("left")(x), conv("right")(y), conv("third")(y)]

    graph = graph_of(fork)
    consumers = channel_spaces(graph)["conv"].consumers
    assert sorted(consumers) == ["left", "right", "third"]
    assert removable(graph) == ["conv"]


def nested_graph():
    def model(function, name):
        inner_inputs = keras.Input((8, 8, 4))
        return keras.Model(inner_inputs, function(inner_inputs), name=name)

    def body(x):
        return conv("second")(layers.ReLU()(conv("first")(x)))

    def net(x):
        x = model(body, "block")(conv("stem")(x))
        x = layers.BatchNormalization(name="norm")(x)
        x = model(lambda x: model(body, "block")(x), "outer")(conv("middle")(x))
        return head(x)

    return graph_of(net)


def test_nested_models_can_be_left_but_not_entered():
    spaces = channel_spaces(nested_graph())
    assert spaces["block/first"].consumers == ("block/second",)
    second = spaces["block/second"]
    assert (second.consumers, second.carriers) == (("middle",), ("norm",))
    assert spaces["outer/block/second"].consumers == ("head",)
    fixed = "read inside the nested model '{}', whose input shape is fixed"
    assert {name: space.tied for name, space in spaces.items() if space.tied} == {
        "stem": fixed.format("block"),
        "middle": fixed.format("outer/block"),
        "head": "the model returns them",
    }


def conv_twice(x):
    layer = conv("conv", 3)
    return head(layer(layer(x)))


def norm_twice(x):
    norm = layers.BatchNormalization(name="norm")
    return head(norm(ops.relu(norm(conv()(x)))))


def consumer_twice(x):
    x = conv()(x)
    layer = conv("shared", 2)
    return layer(x), layer(layers.ReLU()(x))


def squeeze_excite(x):
    x = conv()(x)
    weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = conv("expand", 4, 1, activation="sigmoid")(weights)
    return head(layers.Multiply(name="multiply")([x, weights]))


def returned(x):
    x = conv()(x)
    return [layers.ReLU()(x), head(x)]


def then(*between, **config):
    """A convolution, the given layers, and a convolution."""

    def build(x):
        x = conv(**config)(x)
        for layer in between:
            x = layer(x)
        return head(x)

    return build


@keras.saving.register_keras_serializable("tests")
class NormedConv2D(layers.Conv2D):
    """Its kernel depends on all inputs at once."""

    def call(self, x):
        return super().call(x) / ops.sum(self._kernel)


class Halve(layers.Layer):
    def call(self, x):
        return x / 2


TIED = {
    "twice": (conv_twice, "'conv' is called 2 times"),
    "norm_twice": (norm_twice, "'norm' is called 2 times"),
    "consumer_twice": (consumer_twice, "'shared' is called 2 times"),
    "squeeze_excite": (squeeze_excite, "merged with others by 'multiply' (Multiply)"),
    "itself": (
        then(lambda x: layers.Multiply(name="square")([x, x])),
        "merged with others by 'square' (Multiply)",
    ),
    "op": (then(lambda x: x * np.arange(4)), "read by 'multiply' (Multiply)"),
    "reshape": (
        then(layers.Reshape((8, 4, 8), name="reshape")),
        "read by 'reshape' (Reshape)",
    ),
    "layer_norm": (
        then(layers.LayerNormalization(name="norm")),
        "read by 'norm' (LayerNormalization)",
    ),
    "softmax": (then(layers.Softmax(name="soft")), "read by 'soft' (Softmax)"),
    "softmax_op": (then(ops.softmax), "read by 'softmax' (Softmax)"),
    "softmax_activation": (
        then(layers.Activation("softmax", name="soft")),
        "the activation softmax of 'soft' may mix channels",
    ),
    "own_softmax": (
        then(activation="softmax"),
        "the activation softmax of 'conv' may mix channels",
    ),
    "own_function": (
        then(activation=lambda x: x / ops.sum(x)),
        "the activation <lambda> of 'conv' may mix channels",
    ),
    "depthwise_softmax": (
        then(layers.DepthwiseConv2D(1, activation="softmax", name="depthwise")),
        "the activation softmax of 'depthwise' may mix channels",
    ),
    "consumer_groups": (then(conv("two", groups=2)), "'two' has groups"),
    "own_groups": (lambda x: head(conv(filters=6, groups=3)(x)), "'conv' has groups"),
    "norm_axis": (
        then(layers.BatchNormalization(axis=1, name="norm")),
        "'norm' normalises axis 1",
    ),
    "channels_first": (
        then(layers.AveragePooling2D(1, data_format="channels_first", name="pool")),
        "'pool' is channels_first",
    ),
    "rescaling": (
        then(layers.Rescaling(np.arange(4.0), name="scale")),
        "'scale' scales each channel differently",
    ),
    "noise_shape": (
        then(layers.Dropout(0.5, noise_shape=(None, 1, 1, 4), name="drop")),
        "'drop' has a noise_shape",
    ),
    "derived_consumer": (
        then(NormedConv2D(2, 1, name="normed")),
        "read by 'normed' (NormedConv2D)",
    ),
    "derived": (
        lambda x: head(NormedConv2D(4, 1, name="conv")(x)),
        "'conv' is a NormedConv2D, which is not known",
    ),
    "unknown": (then(Halve(name="halve")), "read by 'halve' (Halve)"),
    "returned": (returned, "the model returns them"),
    "transposed": (
        then(layers.Conv2DTranspose(2, 3, name="up")),
        "read by 'up' (Conv2DTranspose)",
    ),
}


@pytest.mark.parametrize("function, reason", TIED.values(), ids=TIED)
def test_tied(function, reason):
    graph = graph_of(function)
    assert channel_spaces(graph)["conv"].tied == reason
    # What is behind a mix is nobody's channels.
    if reason.startswith(("merged", "read")):
        space = input_spaces(graph).get("head")
        assert space is None or space.producer != "conv"


def test_lora_weights_tie():
    def dense(x):
        return layers.Dense(2, name="head")(layers.Dense(4, name="conv")(x))

    graph = graph_of(dense, (3,))
    graph.layers()["head"].enable_lora(1)
    assert channel_spaces(graph)["conv"].tied == "'head' has LoRA weights"


def test_flatten_of_open_sizes_ties():
    def flat(x):
        x = conv()(x)
        return [layers.Flatten(name="flat")(x), head(x)]

    reason = channel_spaces(graph_of(flat, (None, 8, 3)))["conv"].tied
    assert reason == "'flat' flattens open sizes (None, 8, 4)"


def test_more_layers_can_be_declared_elementwise(monkeypatch):
    graph = graph_of(then(Halve(name="halve")))
    more = (*channels.ELEMENTWISE_LAYERS, Halve)
    monkeypatch.setattr(channels, "ELEMENTWISE_LAYERS", more)
    assert removable(graph) == ["conv"]


BLOCKS = [(stage, block) for stage in (1, 2, 3) for block in (1, 2, 3)]
REPEATS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3, 7: 1}  # MobileNetV2's blocks per stage
REMOVABLE = {
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


@pytest.mark.parametrize("name", REMOVABLE)
def test_builtin_networks(name):
    graph = Graph(BUILDERS[name]((28, 28, 1), 10))
    assert set(removable(graph)) == REMOVABLE[name]
