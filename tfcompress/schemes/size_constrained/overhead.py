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
# Bytes of a bias or a scale, by the same. Rounded to bfloat16, half of them are zero.
_PACKED_FLOAT_BYTES = {True: 2, False: 4}


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
    folded = {id(norm) for norm in norms.values() if norm is not None}
    layers = list(graph.layers().values())
    packed = floats = 0
    for layer in layers:
        if id(layer) in norms:
            # Scales that are the same for all channels take no bytes after xz.
            if norms[id(layer)] is not None or not compressed:
                packed += _channels(layer)
            packed += sum(math.prod(x.shape) for x in other_weights(layer))
        elif id(layer) in folded:
            packed += math.prod(layer.moving_mean.shape)
        elif isinstance(layer, keras.layers.BatchNormalization):
            packed += 2 * math.prod(layer.moving_mean.shape)
        else:
            floats += layer.count_params()
    float_bytes = 4 * floats + _PACKED_FLOAT_BYTES[compressed] * packed
    per_layer, per_file = GRAPH_BYTES[compressed]
    return float_bytes + per_layer * len(layers) + per_file


def _channels(layer):
    """Number of a layer's output channels."""
    shape = kernel_of(layer).shape
    return math.prod(shape[axis] for axis in forms_of(layer).channel_axes)
