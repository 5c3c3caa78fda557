"""Layers that treat the steps of a sequence as samples of their own, and undo it."""

import keras
from keras import ops

from tfcompress.layers.tensors.masking import UnmaskedLayer
from tfcompress.types import Tensor

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="tfcompress")
class MergeSteps(UnmaskedLayer):
    """Layer from (batch, steps, ...) to (batch * steps, ...)."""

    def call(self, inputs: Tensor) -> Tensor:
        """Returns a tensor with one axis less."""
        return ops.reshape(inputs, (-1, *ops.shape(inputs)[2:]))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (_product(*input_shape[:2]), *input_shape[2:])


@keras.saving.register_keras_serializable(package="tfcompress")
class SplitSteps(UnmaskedLayer):
    """Layer from (batch * steps, ...) to (batch, steps, ...)."""

    def call(self, inputs: Tensor, like: Tensor) -> Tensor:
        """Returns a tensor with one axis more.

        Args:
            inputs: tensor of shape (batch * steps, ...).
            like: tensor of shape (batch, steps, ...), the input of `MergeSteps`.
        """
        batch, steps = ops.shape(like)[:2]
        if isinstance(steps, int):
            batch = -1
        return ops.reshape(inputs, (batch, steps, *ops.shape(inputs)[1:]))

    def compute_output_shape(self, inputs_shape: Shape, like_shape: Shape) -> Shape:
        return (*like_shape[:2], *inputs_shape[1:])


def _product(batch, steps):
    return None if batch is None or steps is None else batch * steps
