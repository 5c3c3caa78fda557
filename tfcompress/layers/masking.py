"""Layer that attaches a mask to a tensor."""

import keras

from tfcompress.compat import keras_private
from tfcompress.types import Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
class AttachMask(keras.layers.Layer):
    """Layer that returns its input with a Keras mask.

    It keeps the masks that a layer attached, where sublayers replace that layer.
    """

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
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)
