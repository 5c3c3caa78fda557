"""Separable convolutions and recurrent layers, split into two layers each."""

import keras
from keras import layers

from tfcompress.graph.graph import Graph
from tfcompress.graph.opening import recurrent
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import value_of

_PARTS = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}
_SUFFIX = "_depthwise"
# Arguments of both parts, then of either part alone. The names of all others begin
# with that of their part.
_SHARED = ("trainable", "dtype", "data_format")
_DEPTHWISE = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
_POINTWISE = (
    *("name", "filters", "activation", "use_bias", "activity_regularizer"),
    *("bias_initializer", "bias_regularizer", "bias_constraint"),
)
_OF_A_KERNEL = ("initializer", "regularizer", "constraint")


def split_separable(model: keras.Model) -> keras.Model:
    """Returns the model with two layers per separable or recurrent one.

    Schemes can compress each of the two. A depthwise layer has the name of the
    separable one and "_depthwise", and the pointwise layer its name. For recurrent
    layers see `tfcompress.graph.opening.recurrent`.

    Args:
        model: built Functional or Sequential model. It is left untouched.

    Returns:
        A Functional `keras.Model` that computes the same; `model` itself if it has
        no such layer.
    """
    if not separable_layers(Graph(model)):
        return model
    parts_of = {}

    def replace(layer):
        if type(layer) in recurrent.STEPS:
            parts_of[id(layer)] = recurrent.parts(layer)
        elif type(layer) in _PARTS:
            parts_of[id(layer)] = _parts(layer)
        else:
            return clone_layer(layer)
        return parts_of[id(layer)]

    split, pairs = rebuild(model, replace)
    for old, new in pairs:
        if id(old) not in parts_of:
            copy_weights(old, new)
        elif type(old) in recurrent.STEPS:
            recurrent.copy_weights(old, parts_of[id(old)])
        else:
            _copy_to_parts(old, *parts_of[id(old)])
    return split


def _copy_to_parts(old, depthwise, pointwise):
    depthwise.kernel.assign(value_of(old.depthwise_kernel))
    pointwise.kernel.assign(value_of(old.pointwise_kernel))
    if old.use_bias:
        pointwise.bias.assign(value_of(old.bias))


def separable_layers(graph: Graph) -> dict[str, str]:
    """`{name of the part that has another name: name}` of a graph's split layers."""
    suffixes = {**dict.fromkeys(_PARTS, _SUFFIX)}
    suffixes.update(dict.fromkeys(recurrent.STEPS, recurrent.SUFFIX))
    return {
        f"{name}{suffixes[type(layer)]}": name
        for name, layer in graph.layers().items()
        if type(layer) in suffixes
    }


def _parts(layer):
    """The depthwise and the pointwise layer of a separable one, not built."""
    config = config_of(layer)
    kinds = _PARTS[type(layer)]
    shared = {key: config[key] for key in _SHARED}
    depthwise = {key: config[key] for key in _DEPTHWISE}
    pointwise = {key: config[key] for key in _POINTWISE}
    for key in _OF_A_KERNEL:
        depthwise[f"depthwise_{key}"] = config[f"depthwise_{key}"]
        pointwise[f"kernel_{key}"] = config[f"pointwise_{key}"]
    return [
        kinds[0].from_config(
            {
                **shared,
                **depthwise,
                "name": f"{layer.name}{_SUFFIX}",
                "use_bias": False,
            }
        ),
        kinds[1].from_config({**shared, **pointwise, "kernel_size": 1}),
    ]
