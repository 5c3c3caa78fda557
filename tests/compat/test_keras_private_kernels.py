"""Private names of the kernels of Keras's layers, and masks."""

import numpy as np
import pytest
from keras import layers, ops

from tfcompress.compat import keras_private

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
        assert keras_private.kernel_variable(layer) is added["kernel"]


@pytest.mark.parametrize("cls", [layers.Embedding, layers.ReversibleEmbedding])
def test_embeddings_create_their_table_by_its_name_and_compute_with_a_property(cls):
    added = {}

    class Doubled(cls):
        def add_weight(self, *args, name=None, **kwargs):
            added[name] = super().add_weight(*args, name=name, **kwargs)
            return added[name]

        @property
        def embeddings(self):
            return 2.0 * keras_private.kernel_variable(self, "embeddings")

    layer = Doubled(5, 3)
    layer.build()
    assert added.keys() == {"embeddings"}
    table = ops.convert_to_numpy(added["embeddings"])
    assert keras_private.kernel_variable(layer, "embeddings") is added["embeddings"]
    np.testing.assert_array_equal(layer(np.array([4, 1])), 2.0 * table[[4, 1]])


def test_masks_that_are_set_are_found():
    x = ops.ones((2, 3))
    keras_private.set_mask(x, ops.ones((2,), "bool"))
    assert keras_private.mask_of(x).shape == (2,)


@each_layer
def test_layers_call_with_the_kernel_that_a_subclass_computes(cls, config, shape):
    class Doubled(cls):
        @property
        def kernel(self):
            return 2.0 * keras_private.kernel_variable(self)

        @kernel.setter
        def kernel(self, variable):
            keras_private.set_kernel_variable(self, variable)

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    doubled, plain = Doubled(**config), cls(**config)
    doubled.build(shape)
    plain.build(shape)
    plain.kernel.assign(keras_private.kernel_variable(doubled))
    np.testing.assert_allclose(doubled(x), 2.0 * plain(x), rtol=1e-5, atol=1e-6)
