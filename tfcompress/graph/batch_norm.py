"""Batch normalization that can be folded into the layer before it."""

import keras

from tfcompress.graph.graph import Graph
from tfcompress.layers.kernel import channel_axis
from tfcompress.layers.registry import forms_of


def foldable(
    graph: Graph, layer: keras.layers.Layer
) -> keras.layers.BatchNormalization | None:
    """Returns the BatchNormalization that can be folded into `layer`, or None.

    It is the only reader of the layer's only output, normalizes the output channels,
    and is itself called once. The layer has no activation.

    Args:
        graph: `tfcompress.graph.Graph`.
        layer: convolution or dense layer of the graph.
    """
    forms = forms_of(layer)
    if forms is not None and not forms.is_linear:
        return None
    calls = graph.calls_of(layer)
    if len(calls) != 1 or layer.activation not in (None, keras.activations.linear):
        return None
    (output,) = calls[0].outputs
    readers = graph.consumers(output)
    if graph.is_output(output) or len(readers) != 1:
        return None
    norm = readers[0].operation
    if not isinstance(norm, keras.layers.BatchNormalization):
        return None
    if readers[0].arguments[1].get("training"):  # of each batch, also in inference
        return None
    ndim = len(output.shape)
    if norm.axis % ndim != channel_axis(layer) % ndim:
        return None
    return norm if len(graph.calls_of(norm)) == 1 else None
