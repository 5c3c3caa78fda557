"""Biases in the units in which int8 operators count them."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import levels_of_tensors
from tfcompress.layers import PackedKernel, QuantizedTensor, TrainingForm
from tfcompress.layers.batch_norm import fold, lower_offset
from tfcompress.layers.kernel import ComputedKernel

# Bound of the sums of int8 operators, and the largest distance of two int8 levels.
_SUMS = 2**31
_DISTANCE = 255


def with_room_for_biases(
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None,
    step: float,
    axes: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales with which the sums of an int8 operator fit int32.

    The unit of sums and biases is the distance of two levels of the input times the
    scale of the kernel's channel. A batch normalization may scale a channel by so
    little that its bias has too many units. The products are negligible compared with
    such a bias, at most 1.5e-5 of it per weight, and the channel's codes become zero.
    Channels of zeros get the largest scale of all, or the one that their bias needs.

    Args:
        codes: int8 array. Kernel.
        scale: positive float32 array that broadcasts to `codes`, one per channel.
        bias: float array (channels,) or (), or None.
        step: float. Distance of two levels of the input.
        axes: ints. All axes of `codes` but those of its output channels.

    Returns:
        `(codes, scale)` of the shapes and dtypes of the arguments.
    """
    bias = np.zeros(()) if bias is None else np.abs(bias.astype(np.float64))
    bias = np.broadcast_to(bias, scale.size).reshape(scale.shape)
    products = np.abs(codes.astype(np.int64)).sum(axis=axes).reshape(scale.shape)
    fits = bias / (step * scale) + _DISTANCE * products < _SUMS
    codes = codes * fits.astype(np.int8)
    used = fits & (products > 0)
    largest = float(np.max(scale[used], initial=0.0)) or 1.0
    # A power of two, so that biases in these units need the same scale.
    needed = np.ldexp(2.0, np.frexp(bias / (step * _SUMS))[1])
    scale = np.where(used, scale, np.maximum(largest, needed))
    return codes, scale.astype(np.float32)


def round_biases(model: keras.Model) -> None:
    """Rounds biases to the units in which int8 operators count them.

    With ternary kernels a unit is up to a third of a level of the result. Channels
    whose units are too small for their biases change, see `with_room_for_biases`.

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
            step = float(ops.convert_to_numpy(source.scale))
            bias = ops.convert_to_numpy(layer.bias)
            codes, scale = with_room_for_biases(
                layer.codes, scale, bias, step, _filter_axes(layer.codes, layer)
            )
            layer.set_kernel(codes, scale)
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
            bias = layer.inference_bias()
            unit = _units(codes, scale, bias, step, layer)
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
    unit = _units(codes, scale, bias, step, layer)
    lower_offset(norm, bias - _rounded(bias, unit))


def _one_source(graph: Graph, layer: keras.layers.Layer, levels: dict[int, Any]) -> Any:
    """The layer that rounds the inputs of all calls, or None."""
    sources = [levels.get(id(call.inputs[0])) for call in graph.calls_of(layer)]
    return sources[0] if len({id(x) for x in sources}) == 1 else None


def _rounded(bias, unit):
    return (np.round(bias.astype(np.float64) / unit) * unit).astype(np.float32)


def _units(codes, scale, bias, step, layer):
    """Units of a layer's biases, float array (channels,)."""
    axes = _filter_axes(codes, layer)
    return step * with_room_for_biases(codes, scale, bias, step, axes)[1].reshape(-1)


def _filter_axes(codes, layer):
    channels = {axis % codes.ndim for axis in layer.channel_axes}
    return tuple(axis for axis in range(codes.ndim) if axis not in channels)
