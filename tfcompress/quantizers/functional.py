"""Quantization as pure functions on `keras.ops`, with straight-through gradients.

A kernel is seen as a matrix of filters, (weights per filter, output channels):
the output channels are the trailing axes of every Keras kernel, two of them for
a depthwise kernel and one for all others.
"""

import math

from keras import ops

# Below any norm that float32 training produces; keeps 0 / 0 out of dead filters.
TINY = 1e-24


def straight_through(value, surrogate):
    """`value` on the way forward, the gradient of `surrogate` on the way back.

    The forward result is `value` to the last bit, because `surrogate` only
    enters as a difference with itself.
    """
    return ops.stop_gradient(value) + (surrogate - ops.stop_gradient(surrogate))


def round_straight_through(x):
    """Rounds to the nearest integer (half to even); the gradient is one."""
    return straight_through(ops.round(x), x)


def filter_axes(kernel, channel_axes):
    """The axes of one filter: all that are not output channels."""
    ndim = len(kernel.shape)
    channels = {axis % ndim for axis in channel_axes}
    return tuple(axis for axis in range(ndim) if axis not in channels)


def l2_norm(kernel, channel_axes):
    """||w|| of each filter, broadcastable to the kernel; never below 1e-12.

    The gradient is that of the norm, and zero for an all-zero filter.
    """
    axes = filter_axes(kernel, channel_axes)
    squares = ops.sum(ops.square(kernel), axis=axes, keepdims=True)
    return ops.sqrt(ops.maximum(squares, TINY))


def _as_rows(kernel, channel_axes):
    """(output channels, weights per filter): sorting wants filters in rows."""
    shape = kernel.shape
    channels = math.prod(shape[axis] for axis in channel_axes)
    return ops.transpose(ops.reshape(kernel, (-1, channels)))


def _broadcast_per_channel(values, kernel, channel_axes):
    ndim = len(kernel.shape)
    channels = {axis % ndim for axis in channel_axes}
    shape = [kernel.shape[i] if i in channels else 1 for i in range(ndim)]
    return ops.reshape(values, shape)


def max_cosine_threshold(kernel, channel_axes=(-1,)):
    """The smallest magnitude to keep for the best ternary direction per filter.

    Keeping the k largest magnitudes of a unit filter u gives the cosine
    `sum_{i<=k} |u|_(i) / sqrt(k)` with its ternary version; the best k follows
    from one sort. It is the exact optimum of ternary weight networks, of which
    0.7 mean|w| is the usual approximation.

    Returns:
        Magnitudes, broadcastable to `kernel`: weights with |w| >= threshold stay.
    """
    rows = ops.abs(_as_rows(kernel, channel_axes))
    descending = -ops.sort(-rows, axis=-1)
    counts = ops.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
    cosines = ops.cumsum(descending, axis=-1) / ops.sqrt(counts)
    best = ops.argmax(cosines, axis=-1)
    threshold = ops.take_along_axis(descending, best[:, None], axis=-1)
    return ops.stop_gradient(_broadcast_per_channel(threshold, kernel, channel_axes))


def sparsity_threshold(kernel, sparsity, channel_axes=(-1,)):
    """Magnitudes that split the kernel so that a share `sparsity` becomes zero.

    Filters are compared on the unit sphere, so one quantile of |w| / ||w|| holds
    for the whole kernel. It lies midway between the last weight that goes and the
    first that stays, so that rounding does not decide about either. The largest
    weight of each filter always stays: no output channel is emptied.

    Args:
        kernel: float tensor.
        sparsity: scalar in (0, 1), the share of zeros; may be a variable.
        channel_axes: axes of the output channels.

    Returns:
        Magnitudes of `kernel`'s scale, broadcastable to it.
    """
    norm = l2_norm(kernel, channel_axes)
    magnitudes = ops.abs(kernel)
    unit = ops.reshape(magnitudes / norm, (-1,))
    size = unit.shape[0]
    zeros = ops.clip(ops.cast(ops.round(sparsity * size), "int32"), 0, size - 1)
    ordered = ops.concatenate([ops.zeros((1,), unit.dtype), ops.sort(unit)])
    quantile = (ops.take(ordered, zeros) + ops.take(ordered, zeros + 1)) / 2.0
    axes = filter_axes(kernel, channel_axes)
    largest = ops.max(magnitudes, axis=axes, keepdims=True)
    return ops.stop_gradient(ops.minimum(quantile * norm, largest))


def ternary_codes(kernel, keep):
    """sign(w) where `keep` is true, zero elsewhere: values in {-1, 0, 1}."""
    return ops.stop_gradient(ops.sign(kernel) * ops.cast(keep, kernel.dtype))


def ternary_scale(kernel, codes, channel_axes=(-1,)):
    """Mean magnitude of the kept weights of each filter: the least-squares scale.

    It equals ||w|| cos / sqrt(nnz): the unit ternary filter, stretched to the
    length of w's projection on it. Zero for a filter without any weight.
    """
    axes = filter_axes(kernel, channel_axes)
    total = ops.sum(kernel * codes, axis=axes, keepdims=True)
    count = ops.sum(ops.abs(codes), axis=axes, keepdims=True)
    return total / ops.maximum(count, 1.0)


def cosine(kernel, codes, channel_axes=(-1,)):
    """Cosine between each filter and its ternary version; 0 for an empty one."""
    axes = filter_axes(kernel, channel_axes)
    total = ops.sum(kernel * codes, axis=axes, keepdims=True)
    count = ops.sum(ops.abs(codes), axis=axes, keepdims=True)
    return total / (l2_norm(kernel, channel_axes) * ops.sqrt(ops.maximum(count, 1.0)))


def ternarize(kernel, codes, scale, channel_axes=(-1,)):
    """`codes * scale` forward; backward, ternarization on the unit sphere.

    With u = w / ||w||, the ternary unit filter is replaced by u straight
    through, and the derivative of the rest is exact:

        dL/dw = cos * ((I - u u^T) g + u (u_hat . g)),   g = dL/d(kernel)

    The first term is the Jacobian of the normalisation, times the length ||w||
    that the ternary filter is given back; the second trains that length, which
    is the learned scale of a layer without batch normalization. With it,
    u_hat . g is zero, and only the direction is trained.
    """
    norm = l2_norm(kernel, channel_axes)
    unit = kernel / norm
    count = ops.sum(
        ops.abs(codes), axis=filter_axes(kernel, channel_axes), keepdims=True
    )
    unit_ternary = straight_through(codes / ops.sqrt(ops.maximum(count, 1.0)), unit)
    cos = ops.stop_gradient(cosine(kernel, codes, channel_axes))
    return straight_through(codes * scale, cos * norm * unit_ternary)


def uniform_codes(kernel, scale, limit):
    """round(w / scale), clipped to [-limit, limit]."""
    return ops.stop_gradient(ops.clip(ops.round(kernel / scale), -limit, limit))


def uniform_scale(kernel, limit, shrink_factors, channel_axes=(-1,)):
    """Per-channel step of the symmetric grid with the least squared error.

    Args:
        kernel: float tensor.
        limit: the largest code.
        shrink_factors: candidate clips as shares of the channel's largest
            magnitude; `(1.0,)` clips nothing.
        channel_axes: axes of the output channels.

    Returns:
        Positive steps, broadcastable to `kernel`; 1 for an all-zero channel.
    """
    axes = filter_axes(kernel, channel_axes)
    largest = ops.max(ops.abs(kernel), axis=axes, keepdims=True)
    best, least_error = None, None
    for factor in shrink_factors:
        scale = ops.where(largest > 0, largest * (factor / limit), 1.0)
        error = kernel - uniform_codes(kernel, scale, limit) * scale
        error = ops.sum(ops.square(error), axis=axes, keepdims=True)
        if best is None:
            best, least_error = scale, error
        else:
            best = ops.where(error < least_error, scale, best)
            least_error = ops.minimum(error, least_error)
    return ops.stop_gradient(best)
