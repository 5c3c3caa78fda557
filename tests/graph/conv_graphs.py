"""Graphs around one convolution named "conv", and the channels of such graphs."""

import keras
from keras import layers

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph


class Halve(layers.Layer):
    """Layer that no rule covers."""

    def __init__(self, name="halve", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, x):
        return x / 2


def channels_of(function, shape=(8, 8, 3)):
    inputs = keras.Input(shape, name="image")
    return Channels(Graph(keras.Model(inputs, function(inputs))))


def conv(name="conv", filters=4, size=3, **config):
    return layers.Conv2D(filters, size, padding="same", name=name, **config)


def head(x):
    return conv("head", 2)(x)


def then(*between, **config):
    """Graph of a convolution, the given layers, and another convolution."""

    def build(x):
        x = conv(**config)(x)
        for layer in between:
            x = layer(x)
        return head(x)

    return build


def reasons(channels, name="conv"):
    """Set of the reasons that freeze channels of a layer; "" for none."""
    return {channels.frozen[c] for c in channels.written[name]}
