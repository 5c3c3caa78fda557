"""Grids of bit sharing, as pure functions on `keras.ops`.

A b-bit grid divides a range into 2^b - 1 steps. A value is its value on the coarsest
grid plus offsets to finer ones ("Single-path Bit Sharing", arXiv 2101.04935). In the
paper grids nest: as 2^8 - 1 = 17 (2^4 - 1) and 2^4 - 1 = 5 (2^2 - 1), one of 2, 4 or 8
bits contains each coarser one. The offsets of others, such as of 3 bits, are the
differences of two roundings.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.types import Tensor

# The paper's bit-widths. Grids nest because each bit-width is twice the one before.
BITS = (2, 4, 8)


def levels(bits: int) -> float:
    """Returns the number of steps in the range of a grid: 2^bits - 1."""
    return 2.0**bits - 1.0


def step_size(clip: Tensor, steps: Tensor, signed: bool) -> Tensor:
    """Returns the distance of neighboring values: the range over its steps.

    Args:
        clip: positive scalar tensor. The range is [-clip, clip] if `signed`, else
            [0, clip].
        steps: `levels(bits)`, a number, an array of numbers or a scalar tensor.
        signed: bool. Whether the range is centered on zero.
    """
    return (2.0 * clip if signed else clip) / steps


def nested_codes(x: Tensor, clip: Tensor, steps: Tensor, signed: bool) -> Tensor:
    """Returns codes on the grid with `steps` steps, by rounding once (half to even).

    On nested grids it equals the paper's recursion through the coarser ones.

    Args:
        x: float tensor.
        clip: positive scalar tensor. Bound of the range.
        steps: `levels(bits)`, a number, an array of numbers or a scalar tensor.
        signed: bool. Whether the grid is centered on zero.

    Returns:
        Float tensor of integral values, of `x`'s shape.
    """
    return _codes(x, step_size(clip, steps, signed), steps, signed)


def _codes(x, step, steps, signed, int8=False):
    # A signed grid has half of its steps, 2^(b-1) - 1/2, on each side of zero.
    high = (steps - 1.0) / 2.0 if signed else steps
    low = -high if signed else 0.0
    if signed and int8:
        low = low - ops.cast(ops.equal(steps, levels(8)), "float32")
    return ops.clip(ops.round(x / step), low, high)


def grid_values(x: Tensor, clip: Tensor, bits: Sequence[int], signed: bool) -> Tensor:
    """Returns values rounded to each grid, float tensor (len(bits), size of `x`).

    Args:
        x: float tensor.
        clip: positive scalar tensor. Bound of the range.
        bits: ints. Increasing bit-widths.
        signed: bool. Whether the range is centered on zero.
    """
    steps = np.array([[levels(b)] for b in bits], np.float32)
    step = step_size(clip, steps, signed)
    return _codes(_as_row(x), step, steps, signed) * step


def mean_errors(x: Tensor, clip: Tensor, bits: Sequence[int], signed: bool) -> Tensor:
    """Returns the error of each grid but the finest, in units of uniform noise.

    The paper's A_j = mean |z - z_j|, on the clipped x, is divided by step / 4, the
    rounding error of an evenly spread variable. The paper's errors range over a factor
    of 80, and one slope of the gates cannot serve them. These are around 1 for every
    layer and bit-width.

    Args:
        x, clip, bits, signed: see `grid_values`.

    Returns:
        Float tensor (len(bits) - 1,), without a gradient; zeros if `x` is empty.
    """
    x, clip = ops.stop_gradient(x), ops.stop_gradient(clip)
    return errors_of(grid_values(x, clip, bits, signed), x, clip, bits, signed)


def errors_of(
    values: Tensor, x: Tensor, clip: Tensor, bits: Sequence[int], signed: bool
) -> Tensor:
    """Returns the `mean_errors` of `values`, the `grid_values` of `x`."""
    clipped = ops.clip(_as_row(x), -clip if signed else 0.0, clip)
    total = ops.sum(ops.abs(clipped - values[:-1]), axis=1)
    # The inverse of step / 4, apart from the clip.
    units = np.array([4.0 / step_size(1.0, levels(b), signed) for b in bits[:-1]])
    return total * np.float32(units) / (clip * size_of(x))


def _as_row(x):
    return x if x.shape[0] == 1 and len(x.shape) == 2 else ops.reshape(x, (1, -1))


def share_bits(
    x: Tensor,
    clip: Tensor,
    gates: Tensor,
    bits: Sequence[int],
    signed: bool,
    factor: Tensor | None = None,
    sample: Callable[[Tensor], Tensor] | None = None,
    values: Tensor | None = None,
    int8: bool = False,
) -> tuple[Tensor, F.Gradient]:
    """Quantizes to the bits that the gates choose, in one pass.

    The value is z_1 + g_1 (eps_1 + g_2 (eps_2 + ...)): the coarsest grid and the
    offsets of the open gates, up to the first closed one.

    Args:
        x: float32 tensor.
        clip: positive scalar tensor. Bound of the range.
        gates: float tensor (len(bits) - 1,) of zeros and ones.
        bits: ints. Increasing bit-widths.
        signed: bool. Whether the range is [-clip, clip] or [0, clip].
        factor: positive tensor that broadcasts to `x`, without a gradient, or None. It
            scales the range.
        sample: function that returns a part of a tensor of `x`'s shape, from which the
            gradient of the gates is estimated. None: they have none.
        values: `grid_values` of `sample(x / factor)`.
        int8: bool. Whether a signed grid of 8 bits begins at -128, as int8 tensors of
            activations do, and not at -127 like kernels.

    Returns:
        `(value, gradient)`. Tensor of `x`'s shape, and its gradient to `x`, `clip` and
        `gates`. To `x` it is straight-through inside the range. To `clip` it is the
        slope of the value: (value - x) / clip inside the range, value / clip outside.
        To each gate it is the exact derivative of the sum above.
    """
    high = clip if factor is None else clip * factor
    steps = open_levels(gates, bits)
    step = step_size(high, steps, signed)
    value = _codes(x, step, steps, signed, int8) * step

    def gradient(upstream):
        inside = ops.abs(x) < high if signed else ops.logical_and(x > 0.0, x < high)
        to_x = ops.where(inside, upstream, 0.0)
        slope = value - ops.where(inside, x, 0.0)
        to_clip = ops.sum(upstream * slope) / clip
        if sample is None:
            return to_x, to_clip, ops.zeros_like(gates)
        part = sample(upstream)
        if factor is not None:
            part = part * sample(factor)
        projections = ops.matmul(values, ops.reshape(part, (-1, 1)))
        to_gates = _gate_gradients(ops.reshape(projections, (-1,)), gates)
        return to_x, to_clip, to_gates * (size_of(x) / size_of(part))

    return value, gradient


def size_of(x: Tensor) -> float | Tensor:
    """Returns the number of values, at least 1: a tensor if the shape is not known."""
    sizes = tuple(x.shape)
    if None not in sizes:
        return max(1.0, float(math.prod(sizes)))
    return ops.maximum(ops.cast(ops.size(x), "float32"), 1.0)


def open_levels(gates: Tensor, bits: Sequence[int]) -> Tensor:
    """Returns `levels` of the bit-width that hard gates choose, a scalar tensor."""
    return _sum_of_open(gates, [levels(b) for b in bits])


def expected_bits(gates: Tensor, bits: Sequence[int]) -> Tensor:
    """Returns b_1 + g_1 (b_2 - b_1) + g_1 g_2 (b_3 - b_2) + ..., differentiable."""
    return _sum_of_open(gates, [float(b) for b in bits])


def _sum_of_open(gates, sizes):
    """s_1 + g_1 (s_2 - s_1) + g_1 g_2 (s_3 - s_2) + ..., for gates on the last axis."""
    total = ops.convert_to_tensor(sizes[0], "float32")
    is_open = None
    for gate, low, high in zip(_split(gates), sizes, sizes[1:], strict=False):
        is_open = gate if is_open is None else is_open * gate
        total = total + is_open * (high - low)
    return total


def _split(gates):
    return ops.unstack(gates, axis=-1) if gates.shape[-1] else []


def _gate_gradients(projections: Tensor, gates: Tensor) -> Tensor:
    """Gradient of each gate, from sum(upstream * value) of each grid's values."""
    opens, totals = _split(gates), ops.unstack(projections)
    slopes = [fine - coarse for coarse, fine in zip(totals, totals[1:], strict=False)]
    gradients: list[Tensor] = []
    # Every term from j on has g_j as a factor, and all gates before its own:
    # d/dg_j = g_1 ... g_(j-1) (slope_j + g_(j+1) (slope_(j+1) + ...)).
    rest = None
    for gate, slope in zip(reversed(opens), reversed(slopes), strict=True):
        gradients = [gate * later for later in gradients]
        rest = slope if rest is None else slope + rest
        gradients.insert(0, rest)
        rest = gate * rest
    return ops.stack(gradients)


def paper_grid(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int]) -> Tensor:
    """Quantizes to the paper's grid: v (2 D(z) - 1), z = (clip(x / v) + 1) / 2.

    The grid has no value at zero, so no integer kernel can hold it. It serves to
    reproduce the paper. Arguments are those of `share_bits`; gradients are autodiff's.
    """
    z = (ops.clip(x / clip, -1.0, 1.0) + 1.0) / 2.0
    coarse = _rounded(z, levels(bits[0]))
    value, is_open = coarse, ops.ones_like(clip)
    for j, b in enumerate(bits[1:]):
        fine = _rounded(z, levels(b))
        is_open = is_open * gates[j]
        value = value + is_open * ops.stop_gradient(fine - coarse)
        coarse = fine
    return clip * (2.0 * (value + z - ops.stop_gradient(z)) - 1.0)


def _rounded(z: Tensor, steps: float) -> Tensor:
    return ops.stop_gradient(ops.round(z * steps) / steps)
