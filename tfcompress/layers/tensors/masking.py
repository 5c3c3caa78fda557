"""Layers that make Keras's masks inputs and outputs of a graph.

A mask is attached to a tensor, and layers read it there when they run. Where sublayers
replace a layer, its masks become tensors like others.
"""

from typing import Any

import keras

from tfcompress.compat import keras_private
from tfcompress.types import Tensor


class UnmaskedLayer(keras.layers.Layer):
    """Layer that passes no mask on by itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


@keras.saving.register_keras_serializable(package="tfcompress")
class AttachMask(UnmaskedLayer):
    """Layer that returns its input with a mask."""

    def call(self, inputs: Tensor, mask_tensor: Tensor) -> Tensor:
        """Returns a tensor with another as its mask.

        Args:
            inputs: tensor of any shape.
            mask_tensor: boolean tensor of its first axes, (batch, steps).
        """
        outputs = keras.ops.copy(inputs)
        keras_private.set_mask(outputs, mask_tensor)
        return outputs

    def compute_output_spec(
        self, inputs: keras.KerasTensor, mask_tensor: keras.KerasTensor
    ) -> keras.KerasTensor:
        outputs = keras.KerasTensor(inputs.shape, dtype=inputs.dtype)
        keras_private.set_mask(outputs, mask_tensor)
        return outputs


@keras.saving.register_keras_serializable(package="tfcompress")
class DetachMask(UnmaskedLayer):
    """Layer that returns its input without its mask."""

    def call(self, inputs: Tensor) -> Tensor:
        """Returns a tensor of the same values."""
        return keras.ops.copy(inputs)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


@keras.saving.register_keras_serializable(package="tfcompress")
class ReadMask(UnmaskedLayer):
    """Layer that returns the mask of its input; True throughout if it has none.

    Args:
        axes: int. Number of axes of the mask, the first ones of the input.
    """

    def __init__(self, axes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes = axes

    def call(self, inputs: Tensor) -> Tensor:
        """Returns a boolean tensor of the first axes of `inputs`."""
        mask = keras_private.mask_of(inputs)
        if mask is None:
            mask = keras.ops.ones(keras.ops.shape(inputs)[: self.axes], "bool")
        return mask

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape[: self.axes], dtype="bool")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axes": self.axes}
