"""Private and undocumented APIs of Keras."""

import keras

from tfcompress.compat.keras_private import flatten_layers


def test_flatten_layers_lists_the_layer_and_all_layers_within_it():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Bidirectional(keras.layers.GRU(2))

    outer = Outer()
    found = {id(layer) for layer in flatten_layers(outer)}
    inner = outer.inner
    assert {id(x) for x in (outer, inner, inner.forward_layer)} <= found
