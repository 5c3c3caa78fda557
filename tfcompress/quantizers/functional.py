"""Quantization as pure functions on `keras.ops`, with straight-through gradients.

A kernel is treated as a matrix of filters, (weights per filter, output channels).
The output channels are the trailing axes of every Keras kernel: two axes for a
depthwise kernel, one for all others.
"""

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
from keras import ops

from tfcompress.types import Tensor

# Lower bound of a squared norm, below any in float32 training: no 0 / 0 for a filter
# of zeros.
TINY = 1e-24
# Range of ternary weights, in scales: that of values which round to -1, 0 or 1.
TERNARY_RANGE = 1.5
# Threshold of ternary weights without a sparsity, in mean magnitudes of the filter.
MEAN_THRESHOLD = 0.7

# Function from the gradient of a value to those of the arguments that it came from.
Gradient: TypeAlias = Callable[[Tensor], tuple[Tensor | None, ...]]


class Rule(NamedTuple):
    """Function with a gradient of its own, and the tensors that it reads.

    Rules are composed by calls of their functions. One `custom_gradient` around several
    of them takes a fraction of the operations of one around each.

    Attributes:
        function: function of `values` and `constants`. It returns its value and the
            gradient, see `custom_gradient`.
        values: tensors that have a gradient.
        constants: tensors without a gradient.
    """

    function: Callable[..., tuple[Tensor, Gradient]]
    values: Sequence[Tensor]
    constants: Sequence[Tensor]

    def __call__(self) -> Tensor:
        return custom_gradient(self.function, *self.values, constants=self.constants)


def read(*values: Any) -> list[Tensor]:
    """Returns variables, tensors or numbers as tensors that are no variables.

    `ops.convert_to_tensor` may return the variable itself on TensorFlow, which neither
    custom gradients nor compiled functions can take for a value.
    """
    return [ops.copy(ops.convert_to_tensor(value)) for value in values]


def custom_gradient(
    function: Callable[..., tuple[Tensor, Gradient]],
    *values: Tensor,
    constants: Sequence[Tensor | None] = (),
) -> Tensor:
    """Returns the value of a function that has a gradient of its own.

    Written out, a gradient takes a fraction of the operations of an automatic one, and
    a student has a hundred of them. It is for tensors that are no variables, see
    `read`.

    Args:
        function: function of the values and constants. It returns its value and the
            gradient, a function from the gradient of the value to a tuple with that of
            each of `values`.
        *values: tensors that have a gradient.
        constants: tensors without a gradient, or None.
    """
    # JAX cannot differentiate a function that reads tensors from outside. The others
    # can, and take fewer operations without arguments for the constants.
    passed = tuple(constants) if keras.config.backend() == "jax" else ()

    @ops.custom_gradient
    def forward(*arguments):
        inputs, given = arguments[: len(values)], arguments[len(values) :]
        value, gradient = function(*inputs, *(given or constants))

        def backward(*args, upstream=None):
            gradients = gradient(args[0] if upstream is None else upstream)
            zeros = (None if x is None else ops.zeros_like(x) for x in given)
            return (*gradients, *zeros)

        return value, backward

    return forward(*values, *passed)


def scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """Returns `x`; its gradient is multiplied by `scale`, which broadcasts to `x`."""

    def forward(x, scale):
        return x, lambda upstream: (upstream * scale,)

    return custom_gradient(forward, x, constants=[scale])


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """Returns `value`, with the gradient of `surrogate`.

    The result equals `value` exactly, because `surrogate` only enters as a difference
    with itself.
    """
    return ops.stop_gradient(value) + (surrogate - ops.stop_gradient(surrogate))


def round_straight_through(x: Tensor) -> Tensor:
    """Rounds to the nearest integer (half to even); the gradient is one."""
    return straight_through(ops.round(x), x)


def filter_axes(kernel: Tensor, channel_axes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes of one filter: all that are not output channels.

    Args:
        kernel: tensor.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    ndim = len(kernel.shape)
    channels = {axis % ndim for axis in channel_axes}
    return tuple(axis for axis in range(ndim) if axis not in channels)


def l2_norm(kernel: Tensor, channel_axes: tuple[int, ...]) -> Tensor:
    """Returns ||w|| of each filter, broadcastable to the kernel, at least 1e-12.

    The gradient is that of the norm, and zero for an all-zero filter.

    Args:
        kernel: float tensor.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    library = _library(kernel)
    axes = filter_axes(kernel, channel_axes)
    squares = library.sum(library.square(kernel), axis=axes, keepdims=True)
    return library.sqrt(library.maximum(squares, TINY))


def on_host(x: Tensor) -> Tensor:
    """Returns an eager tensor or variable of TensorFlow on a CPU as a NumPy array.

    Others are returned as tensors, without a gradient. NumPy sorts about twenty times
    faster on a CPU, and its calls cost a tenth.
    """
    x = ops.stop_gradient(x)  # the value of a variable
    return x.numpy() if hasattr(x, "numpy") and "CPU" in str(x.device) else x


def _library(x: Tensor) -> ModuleType:
    """Returns NumPy for its arrays and `keras.ops` for tensors: equal functions."""
    return np if isinstance(x, np.ndarray) else ops


def mean_threshold(kernel: Tensor, channel_axes: tuple[int, ...] = (-1,)) -> Tensor:
    """Returns 0.7 of the mean magnitude of each filter.

    This threshold approximates the one with the best cosine between a filter and its
    ternary version (Li et al., 2016, equation 6): the cosine of Gaussian weights is
    0.899, and the best one 0.900. It takes no sort, and it moves smoothly with the
    weights, while the best one may jump between steps.

    Args:
        kernel: float tensor.
        channel_axes: tuple of ints. Axes of the output channels.

    Returns:
        Magnitudes in the units of `kernel`, broadcastable to it: weights with
        |w| >= threshold stay.
    """
    axes = filter_axes(kernel, channel_axes)
    mean = ops.mean(ops.abs(kernel), axis=axes, keepdims=True)
    return ops.stop_gradient(MEAN_THRESHOLD * mean)


def sparsity_threshold(
    kernel: Tensor, sparsity: Tensor, channel_axes: tuple[int, ...] = (-1,)
) -> Tensor:
    """Returns the threshold that sets a share `sparsity` of the kernel to zero.

    Filters are compared on the unit sphere, so one quantile of |w| / ||w|| holds for
    the whole kernel. It lies midway between the largest weight that becomes zero and
    the smallest that stays, so that rounding decides about neither. The largest weight
    of each filter always stays: no output channel becomes empty.

    Args:
        kernel: float tensor.
        sparsity: scalar in (0, 1), a number, tensor or variable. Share of zeros.
        channel_axes: tuple of ints. Axes of the output channels.

    Returns:
        Magnitudes in the units of `kernel`, broadcastable to it.
    """
    library = _library(kernel)
    norm = l2_norm(kernel, channel_axes)
    unit = library.reshape(library.abs(kernel) / norm, (-1,))
    size = unit.shape[0]
    zeros = library.array(library.round(sparsity * size), dtype="int32")
    zeros = library.clip(zeros, 0, size - 1)
    first = library.zeros((1,), unit.dtype)
    ordered = library.concatenate([first, library.sort(unit)])
    quantile = (library.take(ordered, zeros) + library.take(ordered, zeros + 1)) / 2.0
    return ops.stop_gradient(at_most_largest(quantile * norm, kernel, channel_axes))


def at_most_largest(
    threshold: Tensor, kernel: Tensor, channel_axes: tuple[int, ...] = (-1,)
) -> Tensor:
    """Returns a threshold that the largest magnitude of each filter reaches.

    Args:
        threshold: float tensor, broadcastable to the kernel.
        kernel: float tensor.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    library = _library(kernel)
    axes = filter_axes(kernel, channel_axes)
    largest = library.max(library.abs(kernel), axis=axes, keepdims=True)
    return library.minimum(threshold, largest)


def ternary_codes(kernel: Tensor, keep: Tensor) -> Tensor:
    """Returns sign(w) where `keep` is true, else zero: values in {-1, 0, 1}.

    Args:
        kernel: float tensor.
        keep: boolean tensor of the kernel's shape.
    """
    return ops.stop_gradient(ops.sign(kernel) * ops.cast(keep, kernel.dtype))


def ternary_scale(
    kernel: Tensor, codes: Tensor, channel_axes: tuple[int, ...] = (-1,)
) -> Tensor:
    """Returns the mean magnitude of each filter's kept weights.

    This is the least-squares scale. It equals ||w|| cos / sqrt(nnz): it gives the
    ternary filter the length of w's projection on it. It is zero for an empty filter.

    Args:
        kernel: float tensor.
        codes: float tensor of the kernel's shape, values in {-1, 0, 1}.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    axes = filter_axes(kernel, channel_axes)
    total = ops.sum(kernel * codes, axis=axes, keepdims=True)
    count = ops.sum(ops.abs(codes), axis=axes, keepdims=True)
    return total / ops.maximum(count, 1.0)


def cosine(
    kernel: Tensor, codes: Tensor, channel_axes: tuple[int, ...] = (-1,)
) -> Tensor:
    """Returns the cosine of each filter and its ternary version; 0 if it is empty.

    Args:
        kernel: float tensor.
        codes: float tensor of the kernel's shape, values in {-1, 0, 1}.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    axes = filter_axes(kernel, channel_axes)
    total = ops.sum(kernel * codes, axis=axes, keepdims=True)
    count = ops.sum(ops.abs(codes), axis=axes, keepdims=True)
    return total / (l2_norm(kernel, channel_axes) * ops.sqrt(ops.maximum(count, 1.0)))


def ternarize(
    kernel: Tensor, codes: Tensor, scale: Tensor, channel_axes: tuple[int, ...] = (-1,)
) -> Tensor:
    """Returns `codes * scale`, with the gradient of ternarization on the unit sphere.

    With u = w / ||w||, a straight-through estimator replaces the unit ternary filter
    u_hat by u; the rest of the derivative is exact:

        dL/dw = cos * ((I - u u^T) g + u (u_hat . g)),   g = dL/d(kernel)

    The first term is the Jacobian of the normalization times the filter's length
    ||w||. The second term trains that length: the learned scale of a layer without
    batch normalization. With batch normalization u_hat . g is zero, and only the
    direction is trained.

    Weights of `TERNARY_RANGE` scales or more have no gradient: they would grow without
    an effect, and take as many steps back before their code changes.

    Args:
        kernel: float tensor.
        codes: float tensor of the kernel's shape, values in {-1, 0, 1}.
        scale: float tensor, broadcastable to the kernel.
        channel_axes: tuple of ints. Axes of the output channels.
    """
    axes = filter_axes(kernel, channel_axes)

    def filter_sum(x):
        return ops.sum(x, axis=axes, keepdims=True)

    # Half the passes over the kernel that automatic differentiation would take.
    def forward(kernel, codes, scale):
        def gradient(upstream):
            norm = l2_norm(kernel, channel_axes)
            root = ops.sqrt(ops.maximum(filter_sum(ops.square(codes)), 1.0))
            cos = filter_sum(kernel * codes) / (norm * root)
            along_unit = filter_sum(kernel * upstream) / norm
            along_ternary = filter_sum(codes * upstream) / root
            tangent = kernel * (cos * (along_ternary - along_unit) / norm)
            inside = ops.abs(kernel) < TERNARY_RANGE * scale
            return (ops.where(inside, cos * upstream + tangent, 0.0),)

        return codes * scale, gradient

    constants = ops.stop_gradient(codes), ops.stop_gradient(scale)
    return custom_gradient(forward, kernel, constants=constants)


def uniform_codes(kernel: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Returns round(w / scale), clipped to [-limit, limit], without a gradient.

    Args:
        kernel: float tensor.
        scale: positive float tensor, broadcastable to the kernel.
        limit: int. The largest code.
    """
    return ops.stop_gradient(ops.clip(ops.round(kernel / scale), -limit, limit))


def uniform_scale(
    kernel: Tensor,
    limit: int,
    shrink_factors: Iterable[float],
    channel_axes: tuple[int, ...] = (-1,),
) -> Tensor:
    """Returns each channel's step of the symmetric grid with the least squared error.

    Args:
        kernel: float tensor.
        limit: int. The largest code.
        shrink_factors: floats in (0, 1]. Candidate clips as shares of the channel's
            largest magnitude; `(1.0,)` clips nothing.
        channel_axes: tuple of ints. Axes of the output channels.

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
