"""Biases in the units in which int8 operators count them."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import levels_of_tensors
from tfcompress.layers import PackedKernel, QuantizedTensor, TrainingForm
from tfcompress.layers.batch_norm import affine, fold
from tfcompress.layers.kernel import ComputedKernel, by_channel


def round_biases(model: keras.Model) -> None:
    """Rounds biases to the units in which int8 operators count them.

    The unit is the distance of two levels of the input times the scale of the kernel's
    channel. With ternary kernels it is up to a third of a level of the result.

    Args:
        model: finalized model. Layers with inputs on learned levels are changed.
    """
    graph = Graph(model)
    levels = levels_of_tensors(graph)
    for layer in graph.layers().values():
        if not isinstance(layer, PackedKernel) or not getattr(layer, "use_bias", False):
            continue
        source = _one_source(graph, layer, levels)
        if source is not None:
            scale = ops.convert_to_numpy(layer.kernel_scale)
            scale = _scales_with_zeros(layer.codes, scale, layer)
            layer.kernel_scale.assign(scale)
            step = float(ops.convert_to_numpy(source.scale))
            bias = ops.convert_to_numpy(layer.bias)
            layer.bias.assign(_rounded(bias, step * scale.reshape(-1)))


def move_means(student: keras.Model) -> None:
    """Moves means of batch normalizations to where folded biases are not rounded.

    A student then predicts as its finalized model does. A mean moves by half a unit of
    `round_biases` at most. Frozen normalizations are left alone.

    Args:
        student: Functional model with training layers. Without a `QuantizedTensor`
            nothing is changed.
    """
    for layer, norm, product in _on_learned_levels(student):
        if norm is not None and norm.trainable:
            _move_mean(layer, norm, *product)


def round_trained_biases(student: keras.Model) -> None:
    """Rounds biases as `round_biases` does, where no normalization follows.

    Args:
        student: see `move_means`. Layers that are frozen are left alone.
    """
    for layer, norm, (codes, scale, step) in _on_learned_levels(student):
        has_bias = getattr(layer, "use_bias", False)
        if norm is None and has_bias and layer.trainable:
            unit = step * _scales_with_zeros(codes, scale, layer).reshape(-1)
            bias = layer.inference_bias()
            excess = bias - _rounded(bias, unit)
            layer.bias.assign(ops.convert_to_numpy(layer.bias) - excess)


def _on_learned_levels(student):
    """Yields `(layer, normalization after it or None, product)`.

    Of all layers of a student on tensor ranges that have a `biased_product`.
    """
    graph = Graph(student)
    layers = graph.layers().values()
    if not any(isinstance(layer, QuantizedTensor) for layer in layers):
        return
    levels = levels_of_tensors(graph)
    for layer in layers:
        if isinstance(layer, ComputedKernel) and isinstance(layer, TrainingForm):
            source = _one_source(graph, layer, levels)
            quantizer = getattr(source, "quantizer", None)
            product = layer.biased_product(quantizer and quantizer.scale_value())
            if product is not None:
                yield layer, foldable(graph, layer), product


def _move_mean(layer, norm, codes, scale, step):
    bias = layer.inference_bias()
    bias = np.zeros(()) if bias is None else bias
    codes, scale, bias = fold(codes, scale, bias, norm)
    unit = step * _scales_with_zeros(codes, scale, layer).reshape(-1)
    multiplier = affine(norm)[0]
    excess = np.divide(
        bias - _rounded(bias, unit),
        multiplier,
        out=np.zeros_like(multiplier),
        where=multiplier != 0,
    )
    norm.moving_mean.assign(ops.convert_to_numpy(norm.moving_mean) + excess)


def _one_source(graph: Graph, layer: keras.layers.Layer, levels: dict[int, Any]) -> Any:
    """The layer that rounds the inputs of all calls, or None."""
    sources = [levels.get(id(call.inputs[0])) for call in graph.calls_of(layer)]
    return sources[0] if len({id(x) for x in sources}) == 1 else None


def _rounded(bias, unit):
    return (np.round(bias.astype(np.float64) / unit) * unit).astype(np.float32)


def _scales_with_zeros(codes, scale, layer):
    """Scales of a kernel, with the largest one for channels of zeros, as in a file."""
    used = by_channel(codes, layer.channel_axes).any(axis=0).reshape(scale.shape)
    return np.where(used, scale, scale[used].max(initial=0.0) or np.float32(1.0))
