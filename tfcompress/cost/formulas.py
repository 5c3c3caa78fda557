"""Kernels of each Keras layer, and the number of times that one call uses them."""

from typing import Any

import keras
from keras import layers

from tfcompress.layers.kernel import channel_axis
from tfcompress.layers.recurrent.steps import RecurrentSteps
from tfcompress.layers.registry import forms_of

_CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)

# Weights, but no products of matrices: not counted, as in the papers.
_ELEMENTWISE = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.RMSNormalization,
)
# Products, but no weights.
_PRODUCT_LAYERS = (
    layers.AdditiveAttention,
    layers.Attention,
    layers.Dot,
    layers.Lambda,
    layers.MelSpectrogram,
    layers.STFTSpectrogram,
    layers.TFSMLayer,
)
_PRODUCT_OPS = {
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "Dot",
    "DotProductAttention",
    "Einsum",
    "Inner",
    "Matmul",
    "Outer",
    "SeparableConv",
    "Tensordot",
    "Vdot",
}


def kernel_names(operation: Any) -> tuple[str, ...]:
    """Returns the attributes with the kernels whose products are counted.

    An attribute of a layer's cell is "cell.NAME". The tuple is empty for a layer or
    operation that is not counted.
    """
    if _own(operation) is not None:
        return (_own(operation).kernel,)
    if isinstance(operation, _SEPARABLE):
        return ("depthwise_kernel", "pointwise_kernel")
    if isinstance(
        operation,
        (
            *(*_CONVOLUTIONS, *_TRANSPOSED),
            *(layers.Dense, layers.EinsumDense, RecurrentSteps),
        ),
    ):
        return ("kernel",)
    if isinstance(operation, _RECURRENT):
        return ("cell.kernel", "cell.recurrent_kernel")
    if isinstance(operation, layers.Embedding):
        return ("embeddings",) if getattr(operation, "tie_weights", True) else ()
    return ()


def _own(operation):
    forms = forms_of(operation)
    return None if forms is None else forms.own


def has_formula(layer: keras.layers.Layer) -> bool:
    """Returns whether `output_positions` of a layer with `kernel_names` are known."""
    own = _own(layer)
    return own is None or own.positions is not None


def output_positions(
    layer: keras.layers.Layer,
    input_shape: tuple[int | None, ...],
    output_shape: tuple[int | None, ...],
) -> tuple[int | None, ...]:
    """Returns the axes along which one call repeats every weight, per example.

    Args:
        layer: layer with `kernel_names`.
        input_shape, output_shape: tuples. Shapes of the call, batch axis first.

    Returns:
        Axis sizes, None for a size that is unknown before the call. Their product is
        the number of uses of each weight.
    """
    own = _own(layer)
    if own is not None:
        return tuple(own.positions(tuple(input_shape), tuple(output_shape)))
    if isinstance(layer, layers.Embedding):
        is_look_up = len(output_shape) > len(input_shape)
        return (0,) if is_look_up else input_shape[1:-1]
    if isinstance(layer, (*_RECURRENT, RecurrentSteps)):
        return (input_shape[1], *_spatial(layer, (None, *input_shape[2:])))
    if isinstance(layer, _TRANSPOSED):
        return _spatial(layer, input_shape)
    if isinstance(layer, layers.EinsumDense):
        return _einsum_positions(layer.equation, input_shape)
    return _spatial(layer, output_shape)


def leaves_products_out(operation: Any) -> bool:
    """Returns whether an operation without `kernel_names` has uncounted products.

    This is true for layers with matrices of weights but no formula here (attention),
    for products without weights, and for layers of unknown origin.
    """
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).__name__ in _PRODUCT_OPS
    if isinstance(operation, _ELEMENTWISE):
        return False
    known = type(operation).__module__.partition(".")[0] in ("keras", "tfcompress")
    matrices = any(len(weight.shape) > 1 for weight in operation.weights)
    return matrices or not known or isinstance(operation, _PRODUCT_LAYERS)


def _spatial(layer, shape):
    """Returns a shape without its batch and channel axes."""
    axis = channel_axis(layer) % len(shape)
    return tuple(size for i, size in enumerate(shape) if i not in (0, axis))


def _einsum_positions(equation, input_shape):
    """Returns sizes of input axes that the kernel neither sums over nor indexes."""
    input_labels, kernel_labels = equation.split("->")[0].split(",")
    head, _, tail = input_labels.replace(" ", "").partition("...")
    dots = "." * (len(input_shape) - len(head) - len(tail))
    labels = head + dots + tail
    return tuple(
        size
        for label, size in list(zip(labels, input_shape, strict=True))[1:]
        if label not in kernel_labels
    )
