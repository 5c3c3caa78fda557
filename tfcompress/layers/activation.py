"""Quantized activations at inference."""

import keras
import numpy as np

from tfcompress.quantizers.activation import activation_range, quantize_activation


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizeActivation(keras.layers.Layer):
    """`clip(round(x / scale), low, high) * scale`, half to even, in float32.

    It stands in front of a packed layer with a quantized input. Levels run from 0
    to 2^bits - 1, or are symmetric from -(2^(bits-1) - 1) to 2^(bits-1) - 1.

    Args:
        bits: 2 to 8.
        signed: whether the input has negative values.

    Variables (not trainable): `scale`, a scalar.

    Input and output: float tensors of any one shape; the output is float32.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """

    def __init__(self, bits, signed=False, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.low, self.high = activation_range(bits, signed)
        self.bits = int(bits)
        self.signed = bool(signed)
        self.trainable = False

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale", shape=(), initializer="ones", trainable=False
        )

    def set_scale(self, scale):
        """Stores the distance of two levels.

        Raises:
            ValueError: unless it is a positive finite number.
        """
        if not 0 < scale < np.inf:
            raise ValueError(
                f"The scale of layer '{self.name}' must be positive and finite. "
                f"Received: {scale}."
            )
        self.scale.assign(scale)

    def call(self, x):
        return quantize_activation(x, self.scale, self.low, self.high)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "bits": self.bits, "signed": self.signed}
