"""Removal of random channels, and the whole model with those channels masked."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_groups
from tfcompress.layers import PackedKernel


def randomize(model, rng):
    """Gives biases, slopes and statistics random values; kernels stay initialized."""
    for layer in Graph(model).layers().values():
        if isinstance(layer, (PackedKernel, layers.Normalization)):
            continue
        for variable in layer.weights:
            if len(variable.shape) == 1 or variable.name == "alpha":
                positive = variable.name in ("gamma", "moving_variance")
                low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
                variable.assign(rng.uniform(low, high, variable.shape))
    return model


def some_groups(channels, rng, share=0.3):
    """Boolean array over the groups: about a share of each removable set, never all."""
    dropped = np.zeros(len(channels.frozen), bool)
    for group_set in channels.group_sets:
        size = len(group_set.groups)
        if group_set.producers and not group_set.frozen and size > 1:
            count = min(size - 1, max(1, round(share * size)))
            dropped[rng.permutation(group_set.groups)[:count]] = True
    return dropped


def mask_reads(model, channels, dropped):
    """Zeroes the slices of kernels that multiply the dropped channels, in place."""
    for name, layer in Graph(model).layers().items():
        if name not in channels.written or isinstance(layer, layers.Embedding):
            continue
        lost = dropped[channels.read[name]]
        if isinstance(layer, PackedKernel):
            codes = layer.codes.copy()
            codes[..., lost, :] = 0
            layer.set_kernel(codes, layer.kernel_scale)
            continue
        separable = hasattr(layer, "pointwise_kernel")
        kernel = layer.pointwise_kernel if separable else layer.kernel
        values = ops.convert_to_numpy(kernel).copy()
        if separable:
            lost = np.repeat(lost, layer.depth_multiplier)
        if "Transpose" in type(layer).__name__:
            values[..., lost] = 0
        else:
            values[..., lost[: values.shape[-2]], :] = 0
        kernel.assign(values)


def call_on_random(model, rng):
    """Function that calls a model on the same two random samples each time.

    Models with channels_first are compiled, since a CPU has no other kernels for them.
    """
    first = any(
        getattr(layer, "data_format", None) == "channels_first"
        for layer in Graph(model).layers().values()
    )
    samples = [
        rng.integers(0, 5, (2, *tensor.shape[1:]))
        if "int" in tensor.dtype
        else rng.normal(size=(2, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]

    def call(other):
        run = tf.function(other, jit_compile=True) if first else other
        outputs = run(samples if len(samples) > 1 else samples[0], training=False)
        return [
            ops.convert_to_numpy(y).astype(np.float32)
            for y in keras.tree.flatten(outputs)
        ]

    return call


def difference(expected, found):
    """Largest difference relative to the largest value, over all outputs."""
    return max(
        np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)
        for x, y in zip(expected, found, strict=True)
    )


def remove_some(model, rng, share=0.3):
    """Removes random groups and compares with the model that does not read them.

    Returns:
        `(smaller model, Channels of the model, dropped, relative difference)`. The
        model's own kernels for the dropped channels are zero afterwards.
    """
    channels = Channels(Graph(model))
    dropped = some_groups(channels, rng, share)
    smaller = remove_groups(model, channels, dropped)
    mask_reads(model, channels, dropped)
    call = call_on_random(model, rng)
    return smaller, channels, dropped, difference(call(model), call(smaller))
