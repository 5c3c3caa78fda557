"""Batch normalizations whose scales and offsets are values of bfloat16.

They stay float32 in a file. Half of their bits are zero then, which xz removes. The
statistics of a student move to such values, and finalizing keeps what it computes.
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

# Offsets beyond this multiple of the outputs' deviation keep all their bits: of larger
# ones bfloat16 has steps that are no small part of a deviation.
_MOST_DEVIATIONS = 8.0
# Relative distance to a value of bfloat16 that moved statistics, in float32, leave.
_ROUNDING = 2.0**-19


def to_bfloat16(x: ArrayLike) -> np.ndarray:
    """Returns the nearest values of bfloat16, a float32 array of `x`'s shape."""
    rounded = ops.cast(ops.cast(x, "bfloat16"), "float32")
    return ops.convert_to_numpy(rounded)


def snapped(x: ArrayLike) -> np.ndarray:
    """Returns values next to those of bfloat16 as these, and others as they are.

    Args:
        x: float array or variable of any shape.

    Returns:
        float32 array of `x`'s shape.
    """
    x = ops.convert_to_numpy(x).astype(np.float32)
    rounded = to_bfloat16(x)
    return np.where(np.abs(x - rounded) <= _ROUNDING * np.abs(rounded), rounded, x)


def snap_folded(packed: PackedKernel) -> None:
    """Snaps the scales and the bias of a layer with a folded normalization."""
    packed.set_kernel(packed.codes, snapped(packed.kernel_scale))
    packed.bias.assign(snapped(packed.bias))


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
    """Sets the snapped factors and offsets of a trained normalization.

    Args:
        norm: trained normalization.
        new: built `affine_norm(norm)`. Its mean is 0 and its variance is 1.
    """
    factor, offset = (snapped(x) for x in affine(norm))
    new.set_weights([factor, offset, np.zeros_like(factor), np.ones_like(factor)])


def move_statistics(student: keras.Model) -> None:
    """Moves statistics so that batch normalizations have values of bfloat16.

    Scales and offsets change by 1/256 of their values at most. Offsets of many
    deviations stay, see `_MOST_DEVIATIONS`. Frozen normalizations are left alone.

    Args:
        student: Functional model with `Quant*` layers.
    """
    graph = Graph(student)
    for norm in lone_norms(graph):
        if norm.trainable:
            _move(norm, np.ones(()), 0.0)
    for layer in graph.layers().values():
        if isinstance(layer, QuantizedKernel) and layer.kernel_quantizer is not None:
            norm = foldable(graph, layer) if layer.folds_batch_norm else None
            if norm is not None and norm.trainable:
                _, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
                bias = layer.inference_bias()
                _move(norm, scale, 0.0 if bias is None else bias)


def _move(norm, scale, bias):
    """Moves the statistics of a normalization of values with a scale and a bias."""
    # In float32 as in `fold`, where small scales become zero.
    folded = (np.abs(affine(norm)[0]) * scale.reshape(-1)).astype(np.float32)
    rounded = to_bfloat16(folded)
    ratio = np.divide(folded, rounded, out=np.ones_like(folded), where=rounded > 0)
    # The variance brings the scale to its rounded value.
    variance = ops.convert_to_numpy(norm.moving_variance).astype(np.float64)
    moved = np.square(ratio, dtype=np.float64) * (variance + norm.epsilon)
    norm.moving_variance.assign(np.maximum(moved - norm.epsilon, 0.0))
    multiplier, offset = affine(norm)
    offset += multiplier * bias
    deviation = np.abs(multiplier) * np.sqrt(variance + norm.epsilon)
    is_small = np.abs(offset) <= _MOST_DEVIATIONS * deviation
    excess = offset - to_bfloat16(offset.astype(np.float32))
    lower_offset(norm, np.where(is_small, excess, 0.0))
