"""Rules of layers with weights, which make or carry channels."""

from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.rules.elementwise import why_mixed
from tfcompress.graph.trace import Changes, Count, Space, Trace, Weights
from tfcompress.layers.kernel import channel_axis


def dense(trace: Trace, call: Call) -> None:
    source = trace.read(call, -1)
    made = trace.new(call.operation.units)
    weights = {"kernel": {-2: source.ids, -1: made}, "bias": {-1: made}}
    _produce(trace, call, source, made, weights, lambda count: {"units": count(made)})


def convolution(trace: Trace, call: Call) -> None:
    layer = call.operation
    source = trace.read(call, channel_axis(layer))
    if 1 < layer.groups == len(source.ids):
        _convolve_each(trace, call, source)
        return
    made = trace.new(layer.filters)
    _tie_groups(trace, call, source.ids)
    _tie_groups(trace, call, made)
    of_one_group = source.ids[: len(source.ids) // layer.groups]
    weights = {"kernel": {-2: of_one_group, -1: made}, "bias": {-1: made}}
    _produce(trace, call, source, made, weights, _filters(made))


def transposed_convolution(trace: Trace, call: Call) -> None:
    source = trace.read(call, channel_axis(call.operation))
    made = trace.new(call.operation.filters)
    weights = {"kernel": {-2: made, -1: source.ids}, "bias": {-1: made}}
    _produce(trace, call, source, made, weights, _filters(made))


def separable_convolution(trace: Trace, call: Call) -> None:
    layer = call.operation
    source = trace.read(call, channel_axis(layer))
    made = trace.new(layer.filters)
    weights = {
        "depthwise_kernel": {-2: source.ids},
        "pointwise_kernel": {
            -2: np.repeat(source.ids, layer.depth_multiplier),
            -1: made,
        },
        "bias": {-1: made},
    }
    _produce(trace, call, source, made, weights, _filters(made))


def einsum_dense(trace: Trace, call: Call) -> None:
    """Rule of a dense layer on the last axis; any other equation freezes."""
    layer = call.operation
    operands, output = layer.equation.replace(" ", "").split("->")
    left, kernel = operands.split(",")
    is_dense = (
        len(kernel) == 2
        and kernel.isalpha()
        and left[-1:] + output[-1:] == kernel
        and left[:-1] == output[:-1]
        and not set(kernel) & set(left[:-1])
        and layer.bias_axes in (None, kernel[1])
    )
    if not is_dense:
        reason = f"'{call.name}' computes {layer.equation}, no dense layer"
        trace.freeze_call(call, reason)
        return
    source = trace.read(call, -1)
    made = trace.new(layer.kernel.shape[-1])
    weights = {"kernel": {-2: source.ids, -1: made}, "bias": {-1: made}}

    def changes(count: Count) -> dict[str, Any]:
        config = layer.get_config()["output_shape"]
        shape = (config,) if isinstance(config, int) else tuple(config)
        return {"output_shape": (*shape[:-1], count(made))}

    _produce(trace, call, source, made, weights, changes)


def embedding(trace: Trace, call: Call) -> None:
    layer = call.operation
    trace.freeze(trace.space(call.inputs[0]).ids, f"'{call.name}' reads indices")
    made = trace.new(layer.output_dim)
    nothing = Space(0, made[:0])
    weights = {"embeddings": {-1: made}}
    _produce(
        trace, call, nothing, made, weights, lambda count: {"output_dim": count(made)}
    )


def depthwise_convolution(trace: Trace, call: Call) -> None:
    layer = call.operation
    source = trace.read(call, channel_axis(layer))
    ids: np.ndarray = np.repeat(source.ids, layer.depth_multiplier)
    weights = {"kernel": {-2: source.ids}, "bias": {-1: ids}}
    _carry_filtered(trace, call, source, ids, weights, lambda count: {})


def batch_normalization(trace: Trace, call: Call) -> None:
    source = trace.read(call, call.operation.axis)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: {-1: source.ids} for name in names}
    _carry(trace, call, source, weights)


def group_normalization(trace: Trace, call: Call) -> None:
    layer = call.operation
    source = trace.read(call, layer.axis)
    if layer.groups != len(source.ids):
        trace.freeze_call(call, f"'{call.name}' normalizes over groups of channels")
        return
    weights = {name: {-1: source.ids} for name in ("gamma", "beta")}
    _carry(trace, call, source, weights, lambda count: {"groups": count(source.ids)})


def prelu(trace: Trace, call: Call) -> None:
    source = trace.space(call.inputs[0])
    # Its weights have the axes of its input but for the batch.
    weights = {"alpha": {source.axis - len(call.inputs[0].shape): source.ids}}
    _carry(trace, call, source, weights)


def normalization(trace: Trace, call: Call) -> None:
    space = trace.space(call.inputs[0])
    trace.freeze(space.ids, f"'{call.name}' normalizes with fixed statistics")
    trace.put(call, space)


LAYERS = {
    layers.Dense: dense,
    layers.Conv1D: convolution,
    layers.Conv2D: convolution,
    layers.Conv3D: convolution,
    layers.Conv1DTranspose: transposed_convolution,
    layers.Conv2DTranspose: transposed_convolution,
    layers.Conv3DTranspose: transposed_convolution,
    layers.SeparableConv1D: separable_convolution,
    layers.SeparableConv2D: separable_convolution,
    layers.EinsumDense: einsum_dense,
    layers.Embedding: embedding,
    layers.DepthwiseConv1D: depthwise_convolution,
    layers.DepthwiseConv2D: depthwise_convolution,
    layers.BatchNormalization: batch_normalization,
    layers.GroupNormalization: group_normalization,
    layers.PReLU: prelu,
    layers.Normalization: normalization,
}


def _filters(made: np.ndarray) -> Changes:
    return lambda count: {"filters": count(made)}


def _tie_groups(trace, call, ids):
    """Ties the channels at the same place in all groups, which stay equally wide."""
    groups = call.operation.groups
    if groups > 1:
        trace.unite(call, ids.reshape(groups, -1))


def _convolve_each(trace, call, source):
    """Rule of a convolution with a group per channel, which is a depthwise one."""
    ids = np.repeat(source.ids, call.operation.filters // len(source.ids))
    weights = {"kernel": {-1: ids}, "bias": {-1: ids}}
    _carry_filtered(
        trace,
        call,
        source,
        ids,
        weights,
        lambda count: {"filters": count(ids), "groups": count(source.ids)},
    )


def _produce(
    trace: Trace,
    call: Call,
    source: Space,
    made: np.ndarray,
    weights: Weights,
    changes: Changes,
) -> None:
    """Puts new channels, `made`, that are sums over those of `source`."""
    axis = channel_axis(call.operation) % len(call.outputs[0].shape)
    trace.put(call, Space(axis, made))
    trace.resize(call, "producer", source.ids, made, weights, changes)
    _freeze_mixed(trace, call, made)


def _carry_filtered(
    trace: Trace,
    call: Call,
    source: Space,
    ids: np.ndarray,
    weights: Weights,
    changes: Changes,
) -> None:
    """Puts the same channels, filtered one by one, with a bias and an activation."""
    trace.put(call, Space(source.axis, ids))
    trace.resize(call, "carrier", source.ids, ids, weights, changes)
    _freeze_mixed(trace, call, ids)


def _carry(
    trace: Trace,
    call: Call,
    space: Space,
    weights: Weights,
    changes: Changes = lambda count: {},
) -> None:
    """Puts the same channels, with weights for each of them."""
    trace.put(call, space)
    trace.resize(call, "carrier", space.ids, space.ids, weights, changes)


def _freeze_mixed(trace, call, ids):
    reason = why_mixed(call.operation)
    if reason:
        trace.freeze(ids, reason)
