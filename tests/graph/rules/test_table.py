"""Operations that freeze channels, and operations that leave them apart."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.conv_graphs import Halve, channels_of, conv, head, reasons, then
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.rules import table as rules


def returned(x):
    x = conv()(x)
    return [layers.ReLU()(x), head(x)]


@keras.saving.register_keras_serializable("tests")
class NormedConv2D(layers.Conv2D):
    """Subclass of a known layer, with a kernel that mixes all inputs."""

    def call(self, x):
        return super().call(x) / ops.sum(self._kernel)


def mixed_axes(x):
    x = conv(filters=8)(x)
    return head(x + layers.Permute((1, 3, 2))(x))


FROZEN = {
    "op": (
        then(lambda x: x * np.arange(4)),
        "'multiply' (Multiply) has a constant for each channel",
    ),
    "reshape": (
        then(layers.Reshape((8, 16, 2), name="reshape")),
        "read by 'reshape' (Reshape)",
    ),
    "transposed": (mixed_axes, "read by 'add' (Add)"),
    "layer_norm": (
        then(layers.LayerNormalization(name="norm")),
        "'norm' (LayerNormalization) normalizes over the channels",
    ),
    "group_norm": (
        then(layers.GroupNormalization(2, name="norm")),
        "'norm' normalizes over groups of channels",
    ),
    "attention": (
        then(lambda x: layers.MultiHeadAttention(2, 2, name="mha")(x, x)),
        "'mha' (MultiHeadAttention) splits the channels into heads",
    ),
    "recurrent": (
        then(
            layers.Reshape((64, 4)),
            layers.LSTM(4, name="lstm"),
            layers.Reshape((1, 1, 4)),
        ),
        "'lstm' (LSTM) feeds its channels back to itself",
    ),
    "softmax": (
        then(layers.Softmax(name="soft")),
        "'soft' (Softmax) normalizes over the channels",
    ),
    "softmax_op": (
        then(ops.softmax),
        "'softmax' (Softmax) normalizes over the channels",
    ),
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
    "norm_axis": (
        then(layers.BatchNormalization(axis=1, name="norm")),
        "'norm' (BatchNormalization) has its channels on axis 1, not 3",
    ),
    "pool_axis": (
        then(layers.AveragePooling2D(1, data_format="channels_first", name="pool")),
        "'pool' (AveragePooling2D) has its channels on axis 1, not 3",
    ),
    "rescaling": (
        then(layers.Rescaling(np.arange(4.0), name="scale")),
        "'scale' scales each channel differently",
    ),
    "normalization": (
        then(layers.Normalization(mean=[1.0] * 4, variance=[2.0] * 4, name="fixed")),
        "'fixed' normalizes with fixed statistics",
    ),
    "noise_shape": (
        then(layers.Dropout(0.5, noise_shape=(None, 1, 1, 4), name="drop")),
        "'drop' has a noise_shape with the channels",
    ),
    "einsum": (
        then(layers.EinsumDense("abcd,de->abec", (8, 2, 8), name="einsum")),
        "'einsum' computes abcd,de->abec, no dense layer",
    ),
    "steps": (then(lambda x: x[..., ::2]), "read by 'get_item' (GetItem)"),
    "reflection": (
        then(lambda x: ops.pad(x, [[0, 0]] * 3 + [[1, 1]], mode="reflect")),
        "read by 'pad' (Pad)",
    ),
    "reduced": (
        then(lambda x: ops.max(x, -1, keepdims=True)),
        "read by 'max' (Max)",
    ),
    "derived_consumer": (
        then(NormedConv2D(2, 1, name="normed")),
        "read by 'normed' (NormedConv2D)",
    ),
    "derived": (
        lambda x: head(NormedConv2D(4, 1, name="conv")(x)),
        None,
    ),
    "unknown": (then(Halve()), "read by 'halve' (Halve)"),
    "returned": (returned, "the model returns them"),
}


@pytest.mark.parametrize("function, reason", FROZEN.values(), ids=FROZEN)
def test_operation_freezes_channels(function, reason):
    channels = channels_of(function)
    if reason is None:
        assert "conv" not in channels.written
    else:
        assert reasons(channels) == {reason}
    assert not any(channels.removable()[channels.read["head"]])


def test_lora_weights_freeze_channels():
    def dense(x):
        return layers.Dense(2, name="head")(layers.Dense(4, name="conv")(x))

    inputs = keras.Input((3,))
    model = keras.Model(inputs, dense(inputs))
    model.get_layer("head").enable_lora(1)
    assert reasons(Channels(Graph(model))) == {"'head' has LoRA weights"}


def test_flatten_of_open_sizes_freezes_channels():
    def flat(x):
        x = conv()(x)
        return [layers.Flatten(name="flat")(x), head(x)]

    channels = channels_of(flat, (None, 8, 3))
    assert reasons(channels) == {"read by 'flat' (Flatten)"}


def test_rule_can_be_added_to_the_table(monkeypatch):
    monkeypatch.setitem(rules.LAYERS, Halve, rules.elementwise.pass_through)
    assert reasons(channels_of(then(Halve()))) == {""}


def branch(gate):
    """Graph of a convolution multiplied by another with the activation `gate`."""

    def build(x):
        x = conv()(x)
        return head(layers.Multiply()([x, conv("gate", activation=gate)(x)]))

    return build


PASSED = {
    "conv": then(),
    "relu": then(layers.ReLU()),
    "threshold": then(layers.ReLU(threshold=1.0, negative_slope=0.1)),
    "activation": then(activation="swish"),
    "sigmoid": then(activation="sigmoid"),
    "sigmoid layer": then(layers.Activation("sigmoid")),
    "exp": then(ops.exp),
    "offset": then(lambda x: x + 1.0),
    "scale": then(lambda x: 2.0 * x),
    "offset after scale": then(layers.Rescaling(2.0, 1.0)),
    "norm": then(layers.BatchNormalization()),
    "norm after sigmoid": then(layers.BatchNormalization(), activation="sigmoid"),
    "norm without gamma": then(layers.BatchNormalization(scale=False)),
    "depthwise": then(layers.DepthwiseConv2D(3, use_bias=False)),
    "depthwise bias": then(layers.DepthwiseConv2D(3)),
    "pooling": then(layers.MaxPooling2D(), layers.AveragePooling2D(2)),
    "padding": then(lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]])),
    "padding with ones": then(
        lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]], "constant", 1)
    ),
    "product": branch("sigmoid"),
    "sum": then(lambda x: layers.Add()([x, ops.square(x)])),
    "sum with sigmoid": then(lambda x: layers.Add()([x, ops.sigmoid(x)])),
    "product with sigmoid": then(lambda x: x * ops.sigmoid(x)),
    "quotient": then(lambda x: x / (1.0 + ops.abs(x))),
    "two readers": lambda x: [head(y := conv()(x)), conv("other")(ops.exp(y))],
}


@pytest.mark.parametrize("function", PASSED.values(), ids=PASSED)
def test_operation_leaves_channels_removable_and_apart(function):
    channels = channels_of(function)
    assert reasons(channels) == {""}
    assert len(set(channels.written["conv"])) == len(channels.written["conv"])
