"""Channel dependency groups: their layers and the reasons that freeze them."""

import keras
import numpy as np
from keras import layers, ops

from recipes.common.models import BUILDERS
from tests.graph.conv_graphs import Halve, channels_of, conv, head, reasons, then
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantConv2D, QuantDense
from tfcompress.quantizers import Ternary


def members(channels, name):
    """Set of `(producers, carriers, consumers, count)` of the groups a layer makes."""
    return {
        (g.producers, g.carriers, g.consumers, len(g.groups))
        for g in channels.group_sets
        if name in g.producers
    }


def test_elementwise_and_spatial_layers_keep_channels_in_one_group_set():
    def chain(x):
        x = conv(activation="relu6")(x)
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.Activation("gelu")(layers.LeakyReLU()(layers.ReLU(6)(x)))
        x = layers.Rescaling(2.0, 1.0)(layers.PReLU(name="prelu")(x))
        x = ops.relu6(ops.abs(keras.activations.relu(x, negative_slope=0.1)))
        x = layers.SpatialDropout2D(0.1)(layers.Dropout(0.1)(layers.Identity()(x)))
        x = layers.Dropout(0.1, noise_shape=(None, 1, 1, 1))(ops.clip(x, -1, 1))
        x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
        x = layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x))
        x = layers.Resizing(6, 6)(layers.GroupNormalization(-1, name="instance")(x))
        x = layers.MaxPooling2D()(layers.AveragePooling2D(1)((x + 1.0) * 2.0 / 3.0))
        x = layers.GlobalAveragePooling2D(keepdims=True)(layers.UpSampling2D()(x))
        return layers.Dense(2, name="dense")(x)

    channels = channels_of(chain)
    carriers = ("norm", "prelu", "depthwise", "instance")
    assert members(channels, "conv") == {(("conv",), carriers, ("dense",), 4)}
    assert reasons(channels) == {""}
    assert list(channels.read) == ["conv", *carriers, "dense"]
    for name in (*carriers, "dense"):
        np.testing.assert_array_equal(channels.read[name], channels.written["conv"])
    assert channels.unknown == []


def test_residual_stage_is_one_group_set():
    def stage(x):
        x = conv("stem", 4)(x)
        for i in "ab":
            y = QuantConv2D(
                6, 3, padding="same", name=f"{i}1", kernel_quantizer=Ternary()
            )(x)
            x = layers.Add()([x, conv(f"{i}2", 4)(layers.ReLU()(y))])
        x = layers.GlobalAveragePooling2D()(x)
        return QuantDense(2, name="dense", kernel_quantizer=Ternary())(x)

    channels = channels_of(stage)
    adders, readers = ("stem", "a2", "b2"), ("a1", "b1", "dense")
    assert members(channels, "a2") == {(adders, (), readers, 4)}
    assert members(channels, "b1") == {(("b1",), (), ("b2",), 6)}
    assert reasons(channels, "dense") == {"the model returns them"}
    assert channels.removable().sum() == 4 + 6 + 6


def test_details_list_layers_and_reasons_of_each_group_set():
    channels = channels_of(then(layers.BatchNormalization(name="norm"), Halve()))
    assert channels.details().splitlines() == [
        "3 dependency groups, frozen: it is the model's input",
        "    read by conv",
        "4 dependency groups, frozen: read by 'halve' (Halve)",
        "    made by conv",
        "    carried by norm",
        "4 dependency groups, frozen: made by 'halve' (Halve)",
        "    read by head",
        "2 dependency groups, frozen: the model returns them",
        "    made by head",
        "Unknown operations: 'halve' (Halve)",
    ]


def test_consumers_are_all_readers_of_a_tensor():
    def fork(x):
        x = conv()(x)
        y = layers.ReLU()(x)
        return [conv("left")(x), conv("right")(y), conv("third")(y)]

    channels = channels_of(fork)
    (group,) = [g for g in channels.group_sets if "conv" in g.producers]
    assert sorted(group.consumers) == ["left", "right", "third"]
    assert not group.frozen


def test_concatenation_appends_channels_without_tying_them():
    def dense_block(x):
        a, b = conv("a", 2)(x), conv("b", 3)(x)
        return head(ops.concatenate([layers.Concatenate()([a, b]), a], axis=-1))

    channels = channels_of(dense_block)
    a, b = channels.written["a"], channels.written["b"]
    np.testing.assert_array_equal(channels.read["head"], [*a, *b, *a])
    assert not set(a) & set(b)


def test_flatten_reshape_and_depth_multipliers_repeat_channels():
    def repeated(x):
        x = layers.Conv1D(3, 1, name="conv")(x)
        x = layers.DepthwiseConv1D(1, depth_multiplier=2, name="depthwise")(x)
        x = layers.BatchNormalization(name="norm")(x)
        y = layers.Permute((2, 1))(x)
        return [
            layers.Dense(1, name="flat")(layers.Flatten()(x)),
            layers.Dense(1, name="moved")(layers.Flatten()(y)),
            layers.Dense(1, name="paired")(layers.Reshape((2, 12))(x)),
        ]

    channels = channels_of(repeated, (4, 5))
    once = np.repeat(channels.written["conv"], 2)
    np.testing.assert_array_equal(channels.read["norm"], once)
    np.testing.assert_array_equal(channels.read["flat"], np.tile(once, 4))
    np.testing.assert_array_equal(channels.read["moved"], np.repeat(once, 4))
    np.testing.assert_array_equal(channels.read["paired"], np.tile(once, 2))
    assert reasons(channels) == {""}


def test_padding_adds_new_channels():
    def padded(x):
        x = ops.pad(conv()(x), [[0, 0], [0, 0], [1, 1], [1, 2]])
        return head(x)

    channels = channels_of(padded)
    read = channels.read["head"]
    np.testing.assert_array_equal(read[1:5], channels.written["conv"])
    assert len(set(read)) == 7


def test_slices_and_splits_take_a_range_of_channels():
    def sliced(x):
        x = conv(filters=6)(x)
        left, right = ops.split(x[..., 1:5], 2, axis=-1)
        return [conv("left")(left), conv("right")(right), conv("whole")(x[:, 2:])]

    def one_dimensional(x):
        x = conv(filters=6)(x)
        return layers.Dense(2, name="row")(x[:, 0, None, :, 2:])

    channels = channels_of(sliced)
    made = channels.written["conv"]
    np.testing.assert_array_equal(channels.read["left"], made[1:3])
    np.testing.assert_array_equal(channels.read["right"], made[3:5])
    np.testing.assert_array_equal(channels.read["whole"], made)
    channels = channels_of(one_dimensional)
    np.testing.assert_array_equal(channels.read["row"], channels.written["conv"][2:])


def test_grouped_convolution_ties_channels_across_its_groups():
    channels = channels_of(
        lambda x: head(conv("grouped", 6, groups=2)(conv(filters=8)(x)))
    )
    for name, size in (("conv", 8), ("grouped", 6)):
        written = channels.written[name].reshape(2, size // 2)
        np.testing.assert_array_equal(written[0], written[1])
        assert len(set(written[0])) == size // 2
    assert reasons(channels) == reasons(channels, "grouped") == {""}


def test_convolution_with_a_group_per_channel_is_a_carrier():
    channels = channels_of(then(conv("each", 8, groups=4)))
    np.testing.assert_array_equal(
        channels.read["head"], np.repeat(channels.written["conv"], 2)
    )
    assert "each" not in channels.written


def test_shared_layer_ties_the_channels_of_its_calls():
    def shared(x):
        layer, norm = conv("shared", 4), layers.BatchNormalization(name="norm")
        a, b = conv("a", 4)(x), conv("b", 4)(x)
        return [head(norm(layer(a))), conv("other")(norm(layer(layer(b))))]

    channels = channels_of(shared)
    for name in ("a", "b"):
        np.testing.assert_array_equal(
            channels.written[name], channels.written["shared"]
        )
    assert reasons(channels, "a") == {""}


def nested_model(function, name, shape=(8, 8, 4)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs), name=name)


def test_channels_are_followed_across_the_borders_of_nested_models():
    def body(x):
        return conv("second")(layers.ReLU()(conv("first")(x)))

    def net(x):
        x = nested_model(body, "block")(conv("stem")(x))
        x = layers.BatchNormalization(name="norm")(x)
        outer = nested_model(lambda x: nested_model(body, "block")(x), "outer")
        return head(outer(conv("middle")(x)))

    channels = channels_of(net)
    assert members(channels, "stem") == {(("stem",), (), ("block/first",), 4)}
    assert members(channels, "block/second") == {
        (("block/second",), ("norm",), ("middle",), 4)
    }
    assert members(channels, "middle") == {(("middle",), (), ("outer/block/first",), 4)}
    for name in ("stem", "block/second", "middle", "outer/block/second"):
        assert reasons(channels, name) == {""}


def test_shared_nested_model_ties_the_channels_of_its_calls():
    def net(x):
        relu = keras.Sequential([keras.Input((8, 8, 4)), layers.ReLU()])
        return [head(relu(conv("a")(x))), conv("other")(relu(conv("b")(x)))]

    channels = channels_of(net)
    np.testing.assert_array_equal(channels.written["a"], channels.written["b"])


def squeeze_excite(x):
    x = conv()(x)
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, 4))(y)
    y = conv("expand", 4, 1, activation="sigmoid")(conv("squeeze", 2, 1)(y))
    return head(layers.Multiply()([x, y]))


def spatial_attention(x):
    x = conv()(x)
    return head(x * conv("map", 1, activation="sigmoid")(x))


def test_broadcasting_ties_only_operands_with_all_channels():
    channels = channels_of(squeeze_excite)
    np.testing.assert_array_equal(channels.written["conv"], channels.written["expand"])
    assert reasons(channels) == {""}
    channels = channels_of(spatial_attention)
    assert reasons(channels) == {""}
    (reason,) = reasons(channels, "map")
    assert reason.endswith("(Multiply) broadcasts it")


def test_channels_first_layers_take_channels_from_axis_1():
    def first(x):
        config = {"data_format": "channels_first"}
        x = conv(**config)(x)
        x = layers.BatchNormalization(axis=1, name="norm")(x)
        x = layers.MaxPooling2D(**config)(
            layers.PReLU(shared_axes=(2, 3), name="prelu")(x)
        )
        y = layers.Flatten(**config)(x)
        z = layers.Permute((2, 3, 1))(x)
        return [
            layers.Dense(1, name="flat")(y),
            layers.Dense(1, name="moved")(z),
            layers.Dense(1, name="global")(layers.GlobalMaxPooling2D(**config)(x)),
        ]

    channels = channels_of(first, (3, 4, 4))
    made = channels.written["conv"]
    for name in ("norm", "moved", "global"):
        np.testing.assert_array_equal(channels.read[name], made)
    np.testing.assert_array_equal(channels.read["flat"], np.tile(made, 4))
    assert reasons(channels) == {""}


def test_builtin_networks_freeze_only_their_logits():
    for name in ("lenet5", "resnet8", "resnet20", "mobilenetv2"):
        channels = Channels(Graph(BUILDERS[name]((28, 28, 1), 10)))
        made = np.unique(np.concatenate(list(channels.written.values())))
        assert channels.removable().sum() == len(made) - 10, name


def test_resnet_shortcuts_tie_channels_of_several_stages():
    channels = Channels(Graph(BUILDERS["resnet20"]((28, 28, 1), 10)))
    sizes = [len(g.groups) for g in channels.group_sets if "stage3_block3_conv2" in
             g.producers]  # fmt: skip
    # Channels of stage 3 alone, of stages 2 and 3, and of all stages.
    assert sorted(sizes) == [16, 16, 32]
    inside = [g for g in channels.group_sets if g.producers == ("stage2_block1_conv1",)]
    assert [len(g.groups) for g in inside] == [32]
