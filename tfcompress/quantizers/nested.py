"""The nested grids of bit sharing, as pure functions on `keras.ops`.

A b-bit grid over a range divides it into 2^b - 1 steps. As 2^8 - 1 = 17 (2^4 - 1) and
2^4 - 1 = 5 (2^2 - 1), a grid of 2, 4 or 8 bits contains each coarser one: a value is
its coarse value plus offsets ("Single-path Bit Sharing", arXiv 2101.04935).
"""

from keras import ops

# The paper's bit-widths; each is twice the one before, or the grids do not nest.
BITS = (2, 4, 8)


def levels(bits):
    """Steps in the range of a grid: 2^bits - 1."""
    return 2.0**bits - 1.0


def step_size(clip, steps, signed):
    """Distance of neighbouring values: the range over its number of steps.

    Args:
        clip: positive scalar tensor; the range is [-clip, clip] if signed, else
            [0, clip].
        steps: `levels(bits)`, a number or a scalar tensor.
    """
    return (2.0 * clip if signed else clip) / steps


def nested_codes(x, clip, steps, signed):
    """Codes on the grid with `steps` steps, by rounding once (half to even).

    That one rounding equals the paper's recursion through the coarser grids.

    Args:
        x: float tensor.
        clip: positive scalar tensor.
        steps: `levels(bits)`, a number or a scalar tensor.
        signed: whether the grid is centred on zero.

    Returns:
        Float tensor of integral values, of `x`'s shape.
    """
    # Half of the steps of a signed grid, 2^(b-1) - 1/2, lie on each side of zero.
    high = (steps - 1.0) / 2.0 if signed else steps
    low = -high if signed else 0.0
    return ops.clip(ops.round(x / step_size(clip, steps, signed)), low, high)


def mean_errors(x, clip, bits, signed):
    """How far each grid but the finest is from `x`, in units of uniform noise.

    A_j = mean |z - z_j| of the paper, on the clipped x, divided by step / 4: what
    rounding costs a variable that is spread evenly. A gate of any layer and any
    bit-width then compares numbers around 1, where the paper's range over a factor
    of 80 and meet one threshold with one slope.

    Returns:
        Float tensor, (len(bits) - 1,).
    """
    clipped = ops.clip(x, -clip if signed else 0.0, clip)
    errors = []
    for b in bits[:-1]:
        step = step_size(clip, levels(b), signed)
        rounded = nested_codes(x, clip, levels(b), signed) * step
        errors.append(ops.mean(ops.abs(clipped - rounded)) / (step / 4.0))
    return ops.stop_gradient(ops.stack(errors))


def share_bits(x, clip, gates, bits, signed, gates_learn, one_of=1):
    """Quantizes to the bits that the gates choose; one pass for every choice.

    The value is z_1 + g_1 (eps_1 + g_2 (eps_2 + ...)): the coarsest grid and the
    offsets of the open gates, up to the first that is closed.

    Args:
        x: float32 tensor.
        clip: positive scalar tensor, the bound of the range.
        gates: (len(bits) - 1,) tensor of zeros and ones.
        bits: increasing bit-widths, each twice the one before.
        signed: whether the range is [-clip, clip], centred on zero, or [0, clip].
        gates_learn: scalar float tensor; the gates' gradient is computed only
            where it is not 0, and is zero otherwise.
        one_of: with n > 1, the gates' gradient is estimated from every n-th sample,
            along the first axis of `x`, the batch. The gradient of a batch is an
            estimate in any case, and this one takes rounding `x` three times.

    Returns:
        Tensor of `x`'s shape. Gradients: straight through to `x` inside the range;
        to `clip` the slope of the value that is computed, (value - x) / clip inside
        and value / clip, that of the last level, outside; to each gate the exact
        derivative of the sum above.
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
                part = every_nth((upstream, x), one_of)
                to_gates = ops.cond(
                    gates_learn > 0,
                    lambda: _gate_gradients(*part, clip, gates, bits, signed),
                    lambda: ops.zeros_like(gates),
                )
                to_gates = to_gates * _ratio(x, part[1])
            return to_x, to_clip, to_gates, ops.zeros_like(gates_learn)

        return value, gradient

    return quantize(x, clip, gates, gates_learn)


def every_nth(tensors, n):
    """Every n-th of the samples in tensors, along their first axis; at least one.

    Where replicas share a batch these are the same samples as on one device, if each
    has a multiple of n.
    """
    return tuple(tensor[::n] for tensor in tensors)


def _ratio(whole, part):
    """How many times longer the first axis of `whole` is; 0 without samples."""
    lengths = [ops.cast(ops.shape(tensor)[0], "float32") for tensor in (whole, part)]
    return lengths[0] / ops.maximum(lengths[1], 1.0)


def _inner(a, b):
    return ops.dot(ops.reshape(a, (-1,)), ops.reshape(b, (-1,)))


def open_levels(gates, bits):
    """`levels` of the bit-width that hard gates choose, a scalar tensor."""
    total = ops.convert_to_tensor(levels(bits[0]), "float32")
    is_open = ops.ones_like(total)
    for j in range(len(bits) - 1):
        is_open = is_open * gates[j]
        total = total + is_open * (levels(bits[j + 1]) - levels(bits[j]))
    return total


def expected_bits(gates, bits):
    """b_1 + g_1 (b_2 - b_1) + g_1 g_2 (b_3 - b_2) + ..., with the gates' gradient."""
    total = ops.convert_to_tensor(float(bits[0]), "float32")
    is_open = ops.ones_like(total)
    for j in range(len(bits) - 1):
        is_open = is_open * gates[j]
        total = total + is_open * float(bits[j + 1] - bits[j])
    return total


def _gate_gradients(upstream, x, clip, gates, bits, signed):
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


def paper_grid(x, clip, gates, bits):
    """The paper's own grid for weights: v (2 D(z) - 1), z = (clip(x / v) + 1) / 2.

    It has no value at zero, so no integer kernel can hold it; it is here for
    reproducing the paper. Arguments as in `share_bits`; plain autodiff.
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


def _rounded(z, steps):
    return ops.stop_gradient(ops.round(z * steps) / steps)
