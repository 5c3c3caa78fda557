"""Fixtures of decomposition: digits to train on, and a network to count by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.schemes.decomposition.width_model import WidthModel


@pytest.fixture(scope="session")
def fit_digits(mnist):
    """`fit` on the first digits, 50 in a batch."""

    def fit(student, epochs=1, digits=600, **kwargs):
        images, labels = (array[:digits] for array in mnist[0])
        return student.fit(
            images, labels, batch_size=50, epochs=epochs, verbose=0, **kwargs
        )

    return fit


@pytest.fixture(scope="session")
def counted_net():
    """a (3x3, 8), batch norm, b (3x3, 12), depthwise, c (Dense 5)."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="a")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(12, 3, name="b")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="c")(x))


@pytest.fixture(scope="session")
def channels(counted_net):
    return Channels(Graph(counted_net))


@pytest.fixture(scope="session")
def width_model(counted_net, channels):
    """Function from the unit and the margin to the `WidthModel` of `counted_net`."""

    def make(unit="macs", margin=1.0):
        return WidthModel(counted_net, channels, unit, ("a", "b", "c"), margin)

    return make


@pytest.fixture(scope="session")
def keep_groups(channels):
    """Function from the widths of a and b to the keep mask of channel groups."""

    def make(a=8, b=12):
        keep = np.ones(len(channels.frozen), bool)
        keep[channels.written["a"][a:]] = False
        keep[channels.written["b"][b:]] = False
        return keep

    return make
