"""Private APIs of Keras for the weights of layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.compat import keras_weights_private

LAYERS = [
    (layers.Dense, {"units": 3}, (2, 4)),
    (layers.Conv1D, {"filters": 3, "kernel_size": 2}, (2, 5, 4)),
    (layers.Conv2D, {"filters": 3, "kernel_size": 2}, (2, 5, 5, 4)),
    (layers.DepthwiseConv2D, {"kernel_size": 2}, (2, 5, 5, 4)),
]
each_layer = pytest.mark.parametrize(
    "cls, config, shape", LAYERS, ids=[row[0].__name__ for row in LAYERS]
)


@each_layer
def test_layers_create_their_kernel_by_its_name_and_store_it_privately(
    cls, config, shape
):
    added = {}

    class Recording(cls):
        def add_weight(self, *args, name=None, **kwargs):
            added[name] = super().add_weight(*args, name=name, **kwargs)
            return added[name]

    layer = Recording(**config)
    layer.build(shape)
    assert added.keys() == {"kernel", "bias"}
    if cls is not layers.DepthwiseConv2D:  # it stores its kernel by the setter below
        assert keras_weights_private.kernel_variable(layer) is added["kernel"]


@pytest.mark.parametrize("cls", [layers.Embedding, layers.ReversibleEmbedding])
def test_embeddings_create_their_table_by_its_name_and_compute_with_a_property(cls):
    added = {}

    class Doubled(cls):
        def add_weight(self, *args, name=None, **kwargs):
            added[name] = super().add_weight(*args, name=name, **kwargs)
            return added[name]

        @property
        def embeddings(self):
            return 2.0 * keras_weights_private.kernel_variable(self, "embeddings")

    layer = Doubled(5, 3)
    layer.build()
    assert added.keys() == {"embeddings"}
    table = ops.convert_to_numpy(added["embeddings"])
    assert (
        keras_weights_private.kernel_variable(layer, "embeddings")
        is added["embeddings"]
    )
    np.testing.assert_array_equal(layer(np.array([4, 1])), 2.0 * table[[4, 1]])


@each_layer
def test_layers_call_with_the_kernel_that_a_subclass_computes(cls, config, shape):
    class Doubled(cls):
        @property
        def kernel(self):
            return 2.0 * keras_weights_private.kernel_variable(self)

        @kernel.setter
        def kernel(self, variable):
            keras_weights_private.set_kernel_variable(self, variable)

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    doubled, plain = Doubled(**config), cls(**config)
    doubled.build(shape)
    plain.build(shape)
    plain.kernel.assign(keras_weights_private.kernel_variable(doubled))
    np.testing.assert_allclose(doubled(x), 2.0 * plain(x), rtol=1e-5, atol=1e-6)


def test_variable_that_is_not_autocast_keeps_its_dtype_in_mixed_precision():
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(2,))

        def call(self, inputs):
            return self.w.value

    for changes, dtype in ((False, "bfloat16"), (True, "float32")):
        layer = Own(dtype="mixed_bfloat16")
        layer.build((1, 2))
        if changes:
            keras_weights_private.do_not_autocast(layer.w)
        found = layer(np.ones((1, 2))).dtype
        assert keras.backend.standardize_dtype(found) == dtype


def test_untracked_weight_is_not_among_the_weights_of_a_layer():
    class Own(keras.layers.Layer):
        def build(self, shape):
            variable = self.add_weight(shape=(2,))
            self.kept = self.add_weight(shape=(3,))
            keras_weights_private.untrack_weight(self, variable)

    layer = Own()
    layer.build((1, 2))
    assert [x.shape for x in layer.weights] == [(3,)]
