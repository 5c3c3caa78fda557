"""Layer that rounds means as int8 operators do."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.types import Tensor

# Error of a mean in float32, in levels. Means of up to 5,000 levels are further from a
# tie, or are one.
_NOISE = 1e-4
# Code of level 0 where there are no negative levels.
_ZERO = 128


@keras.saving.register_keras_serializable(package="tfcompress")
class RoundMeans(keras.layers.Layer):
    """Layer that rounds means of levels to levels, as LiteRT's AVERAGE_POOL_2D does.

    The operator adds int8 codes. A mean whose remainder is one half is rounded away
    from code 0, which is level 0 of signed tensors, and level 128 of others.

    Args:
        signed: bool. Whether there are negative levels.

    Variables (not trainable):
        scale: scalar above 0. Distance of two levels.

    Input: float tensor of any shape. Output: float32 tensor of the same shape.
    """

    def __init__(self, signed: bool, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.supports_masking = True
        self.signed = bool(signed)
        self.trainable = False

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(
            name="scale", shape=(), initializer="ones", trainable=False
        )

    def set_steps(self, steps: np.ndarray) -> None:
        """Sets the distance of two levels, the last of a list."""
        self.scale.assign(steps[-1])

    def call(self, x: Tensor) -> Tensor:
        zero = 0 if self.signed else _ZERO
        codes = x / self.scale - zero
        away = ops.floor(ops.abs(codes) + (0.5 + _NOISE))
        return (ops.sign(codes) * away + zero) * self.scale

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "signed": self.signed}
