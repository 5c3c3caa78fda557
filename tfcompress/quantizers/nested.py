"""Nested grids of bit sharing, as pure functions on `keras.ops`.

A b-bit grid divides a range into 2^b - 1 steps. As 2^8 - 1 = 17 (2^4 - 1) and
2^4 - 1 = 5 (2^2 - 1), a grid of 2, 4 or 8 bits contains each coarser one. A value is
therefore its coarse value plus offsets ("Single-path Bit Sharing", arXiv 2101.04935).
"""

from collections.abc import Iterable, Sequence

from keras import ops

from tfcompress.types import Tensor

# The paper's bit-widths. Grids nest because each bit-width is twice the one before.
BITS = (2, 4, 8)


def levels(bits: int) -> float:
    """Returns the number of steps in the range of a grid: 2^bits - 1."""
    return 2.0**bits - 1.0


def step_size(clip: Tensor, steps: Tensor, signed: bool) -> Tensor:
    """Returns the distance of neighbouring values: the range over its steps.

    Args:
        clip: positive scalar tensor. The range is [-clip, clip] if `signed`, else
            [0, clip].
        steps: `levels(bits)`, a number or a scalar tensor.
        signed: bool. Whether the range is centred on zero.
    """
    return (2.0 * clip if signed else clip) / steps


def nested_codes(x: Tensor, clip: Tensor, steps: Tensor, signed: bool) -> Tensor:
    """Returns codes on the grid with `steps` steps, by rounding once (half to even).

    That one rounding equals the paper's recursion through the coarser grids.

    Args:
        x: float tensor.
        clip: positive scalar tensor. Bound of the range.
        steps: `levels(bits)`, a number or a scalar tensor.
        signed: bool. Whether the grid is centred on zero.

    Returns:
        Float tensor of integral values, of `x`'s shape.
    """
    # A signed grid has half of its steps, 2^(b-1) - 1/2, on each side of zero.
    high = (steps - 1.0) / 2.0 if signed else steps
    low = -high if signed else 0.0
    return ops.clip(ops.round(x / step_size(clip, steps, signed)), low, high)


def mean_errors(x: Tensor, clip: Tensor, bits: Sequence[int], signed: bool) -> Tensor:
    """Returns the error of each grid but the finest, in units of uniform noise.

    The paper's A_j = mean |z - z_j|, on the clipped x, is divided by step / 4, the
    rounding error of an evenly spread variable. The paper's errors range over a factor
    of 80, and one slope of the gates cannot serve them. These are around 1 for every
    layer and bit-width.

    Args:
        x: float tensor.
        clip: positive scalar tensor. Bound of the range.
        bits: ints. Increasing bit-widths.
        signed: bool. Whether the range is centred on zero.

    Returns:
        Float tensor (len(bits) - 1,), without a gradient.
    """
    clipped = ops.clip(x, -clip if signed else 0.0, clip)
    errors = []
    for b in bits[:-1]:
        step = step_size(clip, levels(b), signed)
        rounded = nested_codes(x, clip, levels(b), signed) * step
        errors.append(ops.mean(ops.abs(clipped - rounded)) / (step / 4.0))
    return ops.stop_gradient(ops.stack(errors))


def share_bits(
    x: Tensor,
    clip: Tensor,
    gates: Tensor,
    bits: Sequence[int],
    signed: bool,
    gates_learn: Tensor,
    stride: int = 1,
) -> Tensor:
    """Quantizes to the bits that the gates choose, in one pass.

    The value is z_1 + g_1 (eps_1 + g_2 (eps_2 + ...)): the coarsest grid and the
    offsets of the open gates, up to the first closed one.

    Args:
        x: float32 tensor.
        clip: positive scalar tensor. Bound of the range.
        gates: float tensor (len(bits) - 1,) of zeros and ones.
        bits: ints. Increasing bit-widths, each twice the one before.
        signed: bool. Whether the range is [-clip, clip] or [0, clip].
        gates_learn: scalar float tensor. The gates' gradient is zero if it is 0.
        stride: int. The gates' gradient, which rounds `x` three times, is estimated
            from every `stride`-th sample of the batch, the first axis.

    Returns:
        Tensor of `x`'s shape. The gradient to `x` is straight-through inside the range.
        To `clip` it is the slope of the value: (value - x) / clip inside the range,
        value / clip outside. To each gate it is the exact derivative of the sum above.
    """

    @ops.custom_gradient
    def quantize(x, clip, gates, gates_learn):
        steps = open_levels(gates, bits)
        step = step_size(clip, steps, signed)
        value = nested_codes(x, clip, steps, signed) * step

        def gradient(*args, upstream=None):
            (upstream,) = args or (upstream,)
            low = -clip if signed else ops.zeros_like(clip)
            inside = ops.logical_and(x > low, x < clip)
            to_x = ops.where(inside, upstream, 0.0)
            # The sum of upstream * (value - x inside, value outside).
            to_clip = (_inner(upstream, value) - _inner(to_x, x)) / clip
            to_gates = ops.zeros_like(gates)
            if len(bits) > 1:
                some_upstream, some_x = every_nth((upstream, x), stride)
                to_gates = ops.cond(
                    gates_learn > 0,
                    lambda: _gate_gradients(
                        some_upstream, some_x, clip, gates, bits, signed
                    ),
                    lambda: ops.zeros_like(gates),
                )
                to_gates = to_gates * _ratio(x, some_x)
            return to_x, to_clip, to_gates, ops.zeros_like(gates_learn)

        return value, gradient

    return quantize(x, clip, gates, gates_learn)


def every_nth(tensors: Iterable[Tensor], n: int) -> tuple[Tensor, ...]:
    """Returns every n-th sample of each tensor along its first axis, at least one.

    Replicas that share a batch take the same samples as one device would, if the
    share of each is a multiple of n.
    """
    return tuple(tensor[::n] for tensor in tensors)


def _ratio(whole: Tensor, part: Tensor) -> Tensor:
    """Length of `whole` over that of `part`, first axes; 0 without samples."""
    lengths = [ops.cast(ops.shape(tensor)[0], "float32") for tensor in (whole, part)]
    return lengths[0] / ops.maximum(lengths[1], 1.0)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return ops.dot(ops.reshape(a, (-1,)), ops.reshape(b, (-1,)))


def open_levels(gates: Tensor, bits: Sequence[int]) -> Tensor:
    """Returns `levels` of the bit-width that hard gates choose, a scalar tensor."""
    total = ops.convert_to_tensor(levels(bits[0]), "float32")
    is_open = ops.ones_like(total)
    for j in range(len(bits) - 1):
        is_open = is_open * gates[j]
        total = total + is_open * (levels(bits[j + 1]) - levels(bits[j]))
    return total


def expected_bits(gates: Tensor, bits: Sequence[int]) -> Tensor:
    """Returns b_1 + g_1 (b_2 - b_1) + g_1 g_2 (b_3 - b_2) + ..., differentiable."""
    total = ops.convert_to_tensor(float(bits[0]), "float32")
    is_open = ops.ones_like(total)
    for j in range(len(bits) - 1):
        is_open = is_open * gates[j]
        total = total + is_open * float(bits[j + 1] - bits[j])
    return total


def _gate_gradients(
    upstream: Tensor,
    x: Tensor,
    clip: Tensor,
    gates: Tensor,
    bits: Sequence[int],
    signed: bool,
) -> Tensor:
    """sum(upstream * d value / d g_j) for each gate."""
    values = [
        nested_codes(x, clip, levels(b), signed) * step_size(clip, levels(b), signed)
        for b in bits
    ]
    offsets = [
        ops.sum(upstream * (fine - coarse))
        for coarse, fine in zip(values, values[1:], strict=False)
    ]
    gradients = []
    for j in range(len(offsets)):
        # Every term from j on has g_j as a factor, and all gates before its own.
        product, total = ops.ones_like(clip), ops.zeros_like(clip)
        for k, offset in enumerate(offsets):
            product = product * (gates[k] if k != j else 1.0)
            total = total + (product * offset if k >= j else 0.0)
        gradients.append(total)
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
