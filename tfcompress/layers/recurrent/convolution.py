"""Recurrent layer whose products are convolutions."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.layers.recurrent.steps import LSTMSteps
from tfcompress.types import Tensor

_Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="tfcompress")
class ConvLSTMSteps(LSTMSteps):
    """Steps of a `keras.layers.ConvLSTM1D`, `ConvLSTM2D` or `ConvLSTM3D`.

    The same as `LSTMSteps`, but the product h_(t-1) K is a convolution with strides of
    1 and padding "same". The kernel has the shape (*kernel_size, units, 4 * units), the
    input (batch, steps, *positions, 4 * units), and a state (batch, *positions, units).

    Args:
        units: int. Number of filters.
        kernel_size: sequence of ints, one per axis of positions.
        **kwargs: see `LSTMSteps`.

    Raises:
        ValueError: if the last axis of the input is not of size 4 * units, or the size
            of an axis of positions is not known.
    """

    def __init__(self, units: int, kernel_size: Sequence[int], **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.kernel_size = tuple(kernel_size)
        self.input_spec = keras.layers.InputSpec(ndim=3 + len(self.kernel_size))

    def build(self, input_shape: _Shape) -> None:
        self._positions = input_shape[2:-1]
        if None in self._positions:
            raise ValueError(
                f"The input of '{self.name}' is expected to have known sizes but those "
                f"of batch and steps. Received: shape {tuple(input_shape)}."
            )
        super().build(input_shape)

    def get_initial_state(self, batch_size: int | None) -> list[Tensor]:
        """Returns states of zeros."""
        shape = (batch_size, *self._positions, self.units)
        return [ops.zeros(shape, dtype=self.compute_dtype) for _ in self.state_size]

    def times(self, state: Tensor, kernel: Tensor) -> Tensor:
        return ops.conv(state, kernel, padding="same", data_format="channels_last")

    def compute_output_shape(
        self, sequences_shape: _Shape, initial_state_shape: Any = None
    ) -> Any:
        batch, steps, *positions, _ = sequences_shape
        state = (batch, *positions, self.units)
        output = (batch, steps, *state[1:]) if self.return_sequences else state
        if self.return_state:
            return output, *(state for _ in self.state_size)
        return output

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_size": self.kernel_size}
