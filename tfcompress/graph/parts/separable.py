"""Separable convolutions, split into a depthwise and a pointwise layer."""

from collections.abc import Sequence

from keras import layers

from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import value_of

_PARTS = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}
KINDS = tuple(_PARTS)
# Arguments of both parts, then of either part alone. The names of all others begin
# with that of their part.
_SHARED = ("trainable", "dtype", "data_format")
_DEPTHWISE = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
_POINTWISE = (
    *("name", "filters", "activation", "use_bias", "activity_regularizer"),
    *("bias_initializer", "bias_regularizer", "bias_constraint"),
)
_OF_A_KERNEL = ("initializer", "regularizer", "constraint")


def parts(layer: layers.Layer) -> list[layers.Layer]:
    """Returns the depthwise layer, "NAME_depthwise", and the pointwise one, "NAME"."""
    config = config_of(layer)
    kinds = _PARTS[type(layer)]
    shared = {key: config[key] for key in _SHARED}
    depthwise = {key: config[key] for key in _DEPTHWISE}
    pointwise = {key: config[key] for key in _POINTWISE}
    for key in _OF_A_KERNEL:
        depthwise[f"depthwise_{key}"] = config[f"depthwise_{key}"]
        pointwise[f"kernel_{key}"] = config[f"pointwise_{key}"]
    name = f"{layer.name}_depthwise"
    return [
        kinds[0].from_config({**shared, **depthwise, "name": name, "use_bias": False}),
        kinds[1].from_config({**shared, **pointwise, "kernel_size": 1}),
    ]


def copy_weights(old: layers.Layer, new: Sequence[layers.Layer]) -> None:
    """Gives the built `parts` the weights of a separable convolution."""
    depthwise, pointwise = new
    depthwise.kernel.assign(value_of(old.depthwise_kernel))
    pointwise.kernel.assign(value_of(old.pointwise_kernel))
    if old.use_bias:
        pointwise.bias.assign(value_of(old.bias))
