"""Where each Keras layer keeps its kernels, and how often one call uses them."""

import keras
from keras import layers

from tfcompress.layers.kernel import channel_axis

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


def kernel_names(operation):
    """The attributes that hold the kernels whose products are counted.

    A tuple of names; empty for a layer or op that is not counted.
    """
    if isinstance(operation, _SEPARABLE):
        return ("depthwise_kernel", "pointwise_kernel")
    if isinstance(
        operation, (*_CONVOLUTIONS, *_TRANSPOSED, layers.Dense, layers.EinsumDense)
    ):
        return ("kernel",)
    return ()


def output_positions(layer, input_shape, output_shape):
    """How often one call uses every weight of a layer's kernels, per example.

    Args:
        layer: a layer with `kernel_names`.
        input_shape, output_shape: of the call, batch axis first.

    Returns:
        A tuple of axis sizes; an entry is None where the model leaves it open.
    """
    if isinstance(layer, _TRANSPOSED):
        return _spatial(layer, input_shape)
    if isinstance(layer, layers.EinsumDense):
        return _einsum_positions(layer.equation, input_shape)
    return _spatial(layer, output_shape)


def leaves_products_out(operation):
    """Whether an operation without `kernel_names` multiplies all the same.

    True for layers with matrices of weights that no formula here covers (an LSTM,
    attention), for products without weights, and for layers of unknown origin.
    """
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).__name__ in _PRODUCT_OPS
    if isinstance(operation, _ELEMENTWISE):
        return False
    known = type(operation).__module__.partition(".")[0] in ("keras", "tfcompress")
    matrices = any(len(weight.shape) > 1 for weight in operation.weights)
    return matrices or not known or isinstance(operation, _PRODUCT_LAYERS)


def _spatial(layer, shape):
    """A shape without its batch and channel axes."""
    axis = channel_axis(layer) % len(shape)
    return tuple(size for i, size in enumerate(shape) if i not in (0, axis))


def _einsum_positions(equation, input_shape):
    """Sizes of the input's axes that the kernel does not sum over or index."""
    input_labels, kernel_labels = equation.split("->")[0].split(",")
    head, _, tail = input_labels.replace(" ", "").partition("...")
    dots = "." * (len(input_shape) - len(head) - len(tail))
    labels = head + dots + tail
    return tuple(
        size
        for label, size in list(zip(labels, input_shape, strict=True))[1:]
        if label not in kernel_labels
    )
