"""Batch normalization: folding it into the layer before it, exactly."""

import keras
import numpy as np
from keras import ops


def foldable(graph, layer):
    """The BatchNormalization that can be folded into `layer`, or None.

    It must be the only reader of the layer's only output, normalise the output
    channels, and be called once itself.

    Args:
        graph: a `tfcompress.graph.graph.Graph`.
        layer: a convolution or dense layer of it.
    """
    calls = graph.calls_of(layer)
    if len(calls) != 1 or layer.activation not in (None, keras.activations.linear):
        return None
    (output,) = calls[0].outputs
    readers = graph.consumers(output)
    if graph.is_output(output) or len(readers) != 1:
        return None
    norm = readers[0].operation
    if not isinstance(norm, keras.layers.BatchNormalization):
        return None
    ndim = len(output.shape)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    channel_axis = ndim - 1 if last else 1
    if norm.axis % ndim != channel_axis or len(graph.calls_of(norm)) != 1:
        return None
    return norm


def affine(norm):
    """A BatchNormalization at inference as `multiplier * x + offset`.

    Returns:
        `(multiplier, offset)`: float64 arrays of shape (channels,).
    """

    def values(variable, default):
        if variable is None:
            return default
        return np.asarray(ops.convert_to_numpy(variable), np.float64)

    mean, variance = values(norm.moving_mean, 0), values(norm.moving_variance, 1)
    multiplier = values(norm.gamma, 1.0) / np.sqrt(variance + norm.epsilon)
    return multiplier, values(norm.beta, 0.0) - mean * multiplier


def fold(codes, scale, bias, norm):
    """Moves a BatchNormalization into integer codes, scales and bias.

    A negative multiplier flips the signs of the channel's codes, so that scales
    stay positive; a channel multiplied by zero gets zero codes.

    Args:
        codes: int8 array, a kernel that ends in its output channels.
        scale: float32 array, broadcastable to `codes`, one value per channel.
        bias: float array of shape (channels,).
        norm: the BatchNormalization behind the layer.

    Returns:
        `(codes, scale, bias)` of the same shapes, int8 and float32.
    """
    multiplier, offset = affine(norm)
    per_channel = multiplier.reshape(scale.shape)
    codes = codes * np.sign(per_channel).astype(np.int8)
    scale = np.abs(per_channel) * scale
    scale = np.where(per_channel == 0, 1.0, scale)
    bias = np.asarray(bias, np.float64) * multiplier + offset
    return codes, scale.astype(np.float32), bias.astype(np.float32)
