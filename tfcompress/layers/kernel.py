"""Mixin of layers that compute their kernel from a variable."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_weights_private
from tfcompress.types import ArrayLike, Tensor

if TYPE_CHECKING:
    from keras.layers import Layer as _Layer

    from tfcompress.layers.registry import Forms
else:
    _Layer = object  # the Keras layer comes after the mixin


def value_of(variable: ArrayLike) -> np.ndarray:
    """Returns a copy of a variable's value that shares no memory with it.

    On some backends a variable takes over the buffer of the value that it is assigned,
    and frees it in the first training step.
    """
    return np.array(ops.convert_to_numpy(variable))


def channel_axis(layer: keras.layers.Layer) -> int:
    """Returns the axis of channels in a layer's inputs and outputs: 1 or negative."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    axis = getattr(layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


def by_channel(array: np.ndarray, channel_axes: Sequence[int]) -> np.ndarray:
    """Returns a kernel as (weights per output channel, output channels)."""
    last = range(-len(channel_axes), 0)
    moved = np.moveaxis(array, channel_axes, last)
    channels = math.prod(moved.shape[-len(channel_axes) :])
    return moved.reshape(-1, channels)


# Ends of the names of arguments that have an effect in training only.
TRAINING_ARGUMENTS = ("initializer", "regularizer", "constraint")


def kernel_of(layer: keras.layers.Layer) -> Any:
    """Returns the kernel of a plain layer, or the variable that another form has."""
    if isinstance(layer, ComputedKernel):
        return layer.kernel_variable
    from tfcompress.layers.registry import forms_of  # the table names this class

    return getattr(layer, forms_of(layer).kernel)


def other_weights(layer: keras.layers.Layer) -> list[Any]:
    """Returns the weights that all forms of a layer have, such as a bias.

    Args:
        layer: plain, quantized or packed layer.
    """
    computed = isinstance(layer, ComputedKernel)
    left_out = layer.own_weights() if computed else [kernel_of(layer)]
    ids = set(map(id, left_out))
    return [weight for weight in layer.weights if id(weight) not in ids]


def copy_other_weights(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Gives a form of a layer the `other_weights` of another form."""
    pairs = zip(other_weights(old), other_weights(new), strict=True)
    for source, target in pairs:
        target.assign(value_of(source))


class ComputedKernel(_Layer):
    """Mixin before a Keras layer: computes `kernel` from `kernel_variable`.

    Subclasses give `compute_kernel()`.

    Attributes:
        training_arguments: tuple of str. Ends of the names of arguments that a packed
            layer does not have.
    """

    training_arguments: tuple[str, ...] = TRAINING_ARGUMENTS

    @property
    def forms(self) -> "Forms":
        """Row of this layer in the table of forms."""
        from tfcompress.layers.registry import forms_of  # the table names this class

        return forms_of(self)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Axes of output channels in the kernel, negative."""
        return self.forms.channel_axes

    @property
    def kernel_variable(self) -> Any:
        """Variable that Keras made for the kernel."""
        return keras_weights_private.kernel_variable(self, self.forms.kernel)

    def own_weights(self) -> list[Any]:
        """Returns the weights of this form alone, the kernel's variable included."""
        return [self.kernel_variable]

    def inference_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns a configuration of the layer without initializers and the like."""
        return {
            key: value
            for key, value in config.items()
            if not key.endswith(self.training_arguments)
        }

    def compute_kernel(self) -> Tensor:
        """Returns the kernel that the layer computes with, a float tensor."""
        raise NotImplementedError

    @property
    def kernel(self) -> Tensor:
        """Kernel that the layer computes with, a float tensor."""
        if not self.built:
            raise AttributeError("Build the layer before accessing `kernel`.")
        return self.compute_kernel()

    @kernel.setter
    def kernel(self, variable: Any) -> None:
        # Depthwise layers of Keras assign `kernel`; others store the variable.
        keras_weights_private.set_kernel_variable(self, variable)

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> None:
        """Refuses LoRA, whose factors the computed kernel would leave out.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "A layer with a plain kernel is expected. Received: "
            f"enable_lora(rank={rank}) of '{self.name}', whose {type(self).__name__} "
            "computes its kernel. Train without LoRA. Or adapt the float model by "
            "LoRA, and copy its kernels into plain layers before `tfcompress.compress`."
        )

    def save_own_variables(self, store: Any) -> None:
        # Keras's convolutions would save `kernel`, the computed value.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)
