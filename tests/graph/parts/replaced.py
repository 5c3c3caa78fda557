"""Models with layers of several kernels, compared with their replaced forms."""

import keras
import numpy as np
from keras import layers

from tfcompress.compat import keras_private
from tfcompress.graph.parts.replacement import Replacement, replace_by_parts

RNG = np.random.default_rng(0)
IDS = np.array([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 0], [3, 4, 5, 6, 7, 8]])


def normal(*shape):
    return RNG.normal(size=shape).astype("float32")


def embedded(steps=6):
    """Symbolic ids, and vectors of them with a mask."""
    ids = keras.Input((steps,), dtype="int32")
    return ids, layers.Embedding(20, 8, mask_zero=True)(ids)


def replaced_alike(model, *arrays) -> Replacement:
    """Opens a model, and checks that it computes the same and stays as it was."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:  # neither zeros nor ones
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    parts = keras_private.flatten_layers(model)
    calls = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in parts]
    before = model.get_weights()
    replaced = replace_by_parts(model)
    x = list(arrays) if len(arrays) > 1 else arrays[0]
    outputs = [keras.tree.flatten(m(x)) for m in (model, replaced.model)]
    for wanted, received in zip(*outputs, strict=True):
        assert wanted.dtype == received.dtype
        values = [keras.ops.convert_to_numpy(y) for y in (received, wanted)]
        limit = 2e-3 if wanted.dtype == "float16" else 1e-5
        np.testing.assert_allclose(*values, atol=limit)
        masks = [keras_private.mask_of(y) is None for y in (received, wanted)]
        assert masks[0] == masks[1]
    assert replaced.model.output_names == model.output_names
    assert keras_private.flatten_layers(model) == parts
    assert calls == [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in parts]
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    return replaced
