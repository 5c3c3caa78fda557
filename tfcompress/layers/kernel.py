"""Layers whose kernel is computed from a variable whenever it is read."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.types import ArrayLike, Tensor

if TYPE_CHECKING:
    from tfcompress.layers.registry import Forms


def value_of(variable: ArrayLike) -> np.ndarray:
    """A copy of a variable's value, an array that shares no memory with it.

    On some backends a variable that is assigned another's value takes its very buffer,
    and the first training step gives that away.
    """
    return np.array(ops.convert_to_numpy(variable))


def channel_axis(layer: keras.layers.Layer) -> int:
    """The axis of the channels in a layer's inputs and outputs: 1 or negative."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    axis = getattr(layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


class ComputedKernel:
    """Mixin before a Keras layer: `kernel` is computed from `kernel_variable`.

    Subclasses give `compute_kernel()`.
    """

    @property
    def forms(self) -> "Forms":
        """The row of this layer in the table of forms."""
        from tfcompress.layers.registry import forms_of  # the table names this class

        return forms_of(self)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The kernel's axes of output channels."""
        return self.forms.channel_axes

    @property
    def kernel_variable(self) -> Any:
        """The variable that Keras made for the kernel."""
        return keras_private.kernel_variable(self)

    def compute_kernel(self) -> Tensor:
        """The kernel that the layer computes with, a float tensor."""
        raise NotImplementedError

    @property
    def kernel(self) -> Tensor:
        """The kernel that the layer computes with, a float tensor."""
        if not self.built:
            raise AttributeError("Build the layer before accessing `kernel`.")
        return self.compute_kernel()

    @kernel.setter
    def kernel(self, variable: Any) -> None:
        # Depthwise layers of Keras assign `kernel`; others store the variable.
        keras_private.set_kernel_variable(self, variable)

    def save_own_variables(self, store: Any) -> None:
        # Keras's convolutions would save `kernel`, the computed value.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)
