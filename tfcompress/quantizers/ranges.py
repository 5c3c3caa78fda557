"""Ranges of grids with the least squared rounding error."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from tfcompress.quantizers import nested
from tfcompress.quantizers.activation import activation_range
from tfcompress.types import Tensor

# Candidate clips of the line search, as shares of the largest magnitude.
CLIP_FACTORS = np.geomspace(0.02, 1.0, 40)
# Values that suffice for the range of a quantizer, and for one of many candidates.
CLIP_SAMPLES, CANDIDATE_SAMPLES = 100_000, 2**14
# Distance of the positions that two turns take, a prime number.
_STRIDE = 7919


def best_clip(values: np.ndarray, bits: int, signed: bool) -> float:
    """Returns the clip with the least squared error, by a line search.

    Args:
        values: float array of any shape.
        bits: int. Bits of the grid.
        signed: bool. Whether the range is [-clip, clip] or [0, clip].
    """
    largest = float(np.abs(values).max()) if signed else float(values.max(initial=0.0))
    if largest <= 0:
        return 1.0
    low, high = activation_range(bits, signed)

    def error(clip: float) -> float:
        step = (2 if signed else 1) * clip / nested.levels(bits)
        rounded = np.clip(np.round(values / step), low, high) * step
        return float(np.square(values - rounded).mean())

    return min((largest * factor for factor in CLIP_FACTORS), key=error)


def best_clips(
    values: np.ndarray, candidates: Sequence[int], signed: bool
) -> dict[int, float]:
    """Returns the `best_clip` for each of several bit-widths, `{bits: clip}`."""
    values = some_values(values, CANDIDATE_SAMPLES)
    return {bits: best_clip(values, bits, signed) for bits in candidates}


def some_values(values: np.ndarray, count: int = CLIP_SAMPLES) -> np.ndarray:
    """Returns values of an array that suffice for a range, a float32 vector."""
    values = np.asarray(values, np.float32).reshape(-1)
    if values.size <= count:
        return values
    # At random, because every n-th value may belong to the same few channels.
    return values[np.random.default_rng(0).integers(values.size, size=count)]


def sampled_values(x: Tensor, count: int, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Returns values of a tensor, and whether all are finite; for compiled functions.

    Args:
        x: float tensor of any shape, not empty.
        count: int. Number of values, all if there are fewer.
        turn: int32 scalar. Each number takes values at other positions.

    Returns:
        `(values, check)`: float32 vector, and float32 scalar that is 0 if all of `x` is
        finite, else NaN.
    """
    x = ops.reshape(ops.cast(x, "float32"), (-1,))
    check = ops.where(ops.all(ops.isfinite(x)), 0.0, float("nan"))
    (size,) = x.shape
    if size is not None and size <= count:
        return x, check
    shares = np.random.default_rng(0).random(count)
    if size is None:
        size = ops.cast(ops.size(x), "int32")
        first = ops.cast(shares * ops.cast(size, "float64"), "int32")
    else:
        first = ops.convert_to_tensor(np.int32(shares * size))
    return ops.take(x, (first + turn * _STRIDE % size) % size), check
