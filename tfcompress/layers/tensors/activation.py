"""Layer that quantizes activations in inference."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.quantizers.activation import activation_range, quantize_activation
from tfcompress.types import Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizeActivation(keras.layers.Layer):
    """Layer that rounds its input to a few levels, before a packed layer.

    It computes `clip(round(x / scale), low, high) * scale` in float32 and rounds half
    to even. The levels are 0 to 2^bits - 1, or -(2^(bits-1) - 1) to 2^(bits-1) - 1 for
    signed inputs. With 8 bits these begin at -128, as int8 does.

    Args:
        bits: int. Bits of a level, 2 to 8.
        signed: bool. Whether the input has negative values.
        integer: bool. Whether the input is multiplied by `1 / scale`, as LiteRT's
            QUANTIZE does, and not divided. Some values next to a tie fall to the other
            side.

    Variables (not trainable):
        scale: scalar above 0. Distance of two levels.

    Input: float tensor of any shape. Output: float32 tensor of the same shape.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """

    def __init__(
        self,
        bits: int,
        signed: bool = False,
        dtype: Any = "float32",
        integer: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.supports_masking = True
        self.low, self.high = activation_range(bits, signed)
        self.bits = int(bits)
        self.signed = bool(signed)
        self.integer = bool(integer)
        self.trainable = False

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(
            name="scale", shape=(), initializer="ones", trainable=False
        )

    def set_scale(self, scale: float) -> None:
        """Sets the distance of two levels.

        Raises:
            ValueError: if `scale` is not a positive finite number.
        """
        if not 0 < scale < np.inf:
            raise ValueError(
                f"The scale of layer '{self.name}' must be positive and finite. "
                f"Received: {scale}."
            )
        self.scale.assign(scale)

    def call(self, x: Tensor) -> Tensor:
        if self.integer:
            levels = ops.round(ops.clip(x * (1.0 / self.scale), self.low, self.high))
            return levels * self.scale
        return quantize_activation(x, self.scale, self.low, self.high)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "bits": self.bits, "signed": self.signed}
        return {**config, "integer": True} if self.integer else config
