"""Estimated bytes of a file that are not codes, without a conversion."""

import math
from collections.abc import Collection
from typing import Any

import keras

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.layers.kernel import kernel_of, other_weights
from tfcompress.layers.registry import forms_of

# Bytes of a graph per layer and per file, by whether they count after xz.
GRAPH_BYTES = {True: (20, 700), False: (100, 3000)}
# Bytes of a rounded value of a batch normalization after xz.
_ROUNDED_BYTES = 2


def estimated_overhead(
    model: keras.Model, coded: Collection[Any], compressed: bool
) -> int:
    """Returns the approximate bytes of scales, biases, float layers and the graph.

    Batch normalization makes one scale and one bias a channel.

    Args:
        model: Functional model, or a student.
        coded: layers of the model whose kernels are codes.
        compressed: bool. Whether bytes are counted after xz.
    """
    graph = Graph(model)
    norms = {id(layer): foldable(graph, layer) for layer in coded}
    layers = list(graph.layers().values())
    rounded = floats = 0
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = 2 * math.prod(layer.moving_mean.shape)
            is_rounded = compressed and layer.trainable
            rounded += values if is_rounded else 0
            floats += 0 if is_rounded else values
        elif id(layer) not in norms:
            floats += layer.count_params()
        elif norms[id(layer)] is None:
            floats += sum(math.prod(x.shape) for x in other_weights(layer))
            # Scales that are the same for all channels take no bytes after xz.
            floats += 0 if compressed else _channels(layer)
    float_bytes = 4 * floats + _ROUNDED_BYTES * rounded
    per_layer, per_file = GRAPH_BYTES[compressed]
    return float_bytes + per_layer * len(layers) + per_file


def _channels(layer):
    """Number of a layer's output channels."""
    shape = kernel_of(layer).shape
    return math.prod(shape[axis] for axis in forms_of(layer).channel_axes)
