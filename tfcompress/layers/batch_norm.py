"""Batch normalization in inference, folded into integer codes."""

import keras
import numpy as np
from keras import ops


def affine(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns a BatchNormalization in inference as `multiplier * x + offset`.

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


def lower_offset(norm: keras.layers.BatchNormalization, excess: np.ndarray) -> None:
    """Moves the mean so that the offset of `affine` falls by `excess`.

    A channel stays as it is where no float32 mean does that: its multiplier is zero, or
    nearly so.

    Args:
        norm: BatchNormalization with statistics.
        excess: float array (channels,).
    """
    multiplier = affine(norm)[0]
    mean = ops.convert_to_numpy(norm.moving_mean)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = (mean + excess / multiplier).astype(np.float32)
    norm.moving_mean.assign(np.where(np.isfinite(moved), moved, mean))


def fold(
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    norm: keras.layers.BatchNormalization,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Folds a BatchNormalization into the codes, scales and bias before it.

    A negative multiplier flips the signs of the channel's codes, so that scales
    stay positive. A multiplier of zero makes the channel's codes zero.

    Args:
        codes: int8 array. Kernel with its output channels in the last axis or axes.
        scale: float32 array, broadcastable to `codes`, one value per channel.
        bias: float array of shape (channels,) or ().
        norm: the BatchNormalization after the layer.

    Returns:
        `(codes, scale, bias)`: int8 and float32 arrays of the shapes of `codes`,
            `scale` and (channels,).
    """
    multiplier, offset = affine(norm)
    per_channel = multiplier.reshape(scale.shape)
    scale = (np.abs(per_channel) * scale).astype(np.float32)
    codes = codes * np.where(scale == 0, 0, np.sign(per_channel)).astype(np.int8)
    scale = np.where(scale == 0, np.float32(1.0), scale)
    bias = np.asarray(bias, np.float64) * multiplier + offset
    return codes, scale, bias.astype(np.float32)
