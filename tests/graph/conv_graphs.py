"""Graphs around one convolution named "conv", and what is known of its channels."""

import keras
from keras import layers

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph


class Halve(layers.Layer):
    """Nobody knows what it computes."""

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
    """A convolution, the given layers, and a convolution."""

    def build(x):
        x = conv(**config)(x)
        for layer in between:
            x = layer(x)
        return head(x)

    return build


def reasons(channels, name="conv"):
    """Why the channels of a layer stay."""
    return {channels.frozen[c] for c in channels.written[name]}
