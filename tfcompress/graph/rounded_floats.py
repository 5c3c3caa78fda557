"""Scales and biases of finalized models, rounded to bfloat16.

They stay float32 in a file. Half of their bits are zero then, which xz removes.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.layers import PackedKernel, QuantizedKernel
from tfcompress.layers.batch_norm import affine, lower_offset
from tfcompress.layers.cloning import clone_layer
from tfcompress.layers.registry import forms_of
from tfcompress.types import ArrayLike


def to_bfloat16(x: ArrayLike) -> np.ndarray:
    """Returns the nearest values of bfloat16, a float32 array of `x`'s shape."""
    rounded = ops.cast(ops.cast(x, "bfloat16"), "float32")
    return ops.convert_to_numpy(rounded)


def round_floats(packed: PackedKernel, has_norm: bool) -> None:
    """Rounds the bias of a finalized layer to bfloat16, and scales that differ.

    Without a batch normalization scales stay: those of a codebook are all the same,
    and nothing could absorb their rounding.

    Args:
        packed: finalized layer.
        has_norm: bool. Whether a batch normalization was folded into it.
    """
    if has_norm:
        scale = ops.convert_to_numpy(packed.kernel_scale)
        packed.set_kernel(packed.codes, _positive_bfloat16(scale))
    if getattr(packed, "use_bias", False):
        packed.bias.assign(to_bfloat16(packed.bias))


def lone_norms(graph: Graph) -> list[keras.layers.BatchNormalization]:
    """Returns the batch normalizations that a file stores as two vectors.

    Those after a convolution or a dense layer become part of it.

    Args:
        graph: `Graph` of a student.
    """
    layers = graph.layers().values()
    merged = {id(foldable(graph, x)) for x in layers if forms_of(x) is not None}
    return [
        layer
        for layer in layers
        if type(layer) is keras.layers.BatchNormalization
        and id(layer) not in merged
        # Others normalize by the statistics of each batch, also in inference.
        and not any(x.arguments[1].get("training") for x in graph.calls_of(layer))
    ]


def affine_norm(
    norm: keras.layers.BatchNormalization, **changes: Any
) -> keras.layers.BatchNormalization:
    """Returns an unbuilt normalization that `copy_affine` gives the values of `norm`.

    Without an epsilon the file has exactly these values.

    Args:
        norm: normalization of a student.
        **changes: further entries that replace those of the configuration.
    """
    return clone_layer(norm, scale=True, center=True, epsilon=0.0, **changes)


def copy_affine(
    norm: keras.layers.BatchNormalization, new: keras.layers.BatchNormalization
) -> None:
    """Sets rounded factors and offsets of a trained normalization.

    Args:
        norm: trained normalization.
        new: built `affine_norm(norm)`. Its mean is 0 and its variance is 1.
    """
    factor, offset = (to_bfloat16(x.astype(np.float32)) for x in affine(norm))
    new.set_weights([factor, offset, np.zeros_like(factor), np.ones_like(factor)])


def move_statistics(student: keras.Model) -> None:
    """Moves statistics of batch normalizations to where rounding changes nothing.

    A student then predicts as its finalized model does. Scales change by 1/256 of
    their values at most, and so do folded biases. Frozen normalizations are left alone.

    Args:
        student: Functional model with `Quant*` layers.
    """
    graph = Graph(student)
    for norm in lone_norms(graph):
        if norm.trainable:
            _move_statistics(norm, np.ones(()), 0.0)
    for layer, norm in _quantized(graph):
        if norm is not None and norm.trainable:
            _, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
            bias = layer.inference_bias()
            _move_statistics(norm, scale, 0.0 if bias is None else bias)


def round_trained_floats(student: keras.Model) -> None:
    """Rounds biases as `round_floats` does, where no normalization follows.

    Args:
        student: see `move_statistics`. Layers that are frozen are left alone.
    """
    for layer, norm in _quantized(Graph(student)):
        if norm is None and layer.trainable and getattr(layer, "use_bias", False):
            layer.bias.assign(to_bfloat16(layer.bias))


def _quantized(graph):
    """Yields `(layer, normalization that finalizing folds into it or None)`."""
    for layer in graph.layers().values():
        if isinstance(layer, QuantizedKernel) and layer.kernel_quantizer is not None:
            yield layer, foldable(graph, layer) if layer.folds_batch_norm else None


def _move_statistics(norm, scale, bias):
    """Moves the statistics of a normalization of values with a scale and a bias."""
    # In float32 as in `fold`, where small scales become zero.
    folded = (np.abs(affine(norm)[0]) * scale.reshape(-1)).astype(np.float32)
    rounded = _positive_bfloat16(folded)
    ratio = np.divide(folded, rounded, out=np.ones_like(folded), where=folded > 0)
    # The variance brings the scale to its rounded value.
    variance = ops.convert_to_numpy(norm.moving_variance).astype(np.float64)
    moved = np.square(ratio, dtype=np.float64) * (variance + norm.epsilon)
    norm.moving_variance.assign(np.maximum(moved - norm.epsilon, 0.0))
    multiplier, offset = affine(norm)
    offset += multiplier * bias
    lower_offset(norm, offset - to_bfloat16(offset.astype(np.float32)))


def _positive_bfloat16(scale):
    """Rounded scales; those that would become zero stay as they are."""
    rounded = to_bfloat16(scale)
    return np.where(rounded > 0, rounded, scale)
