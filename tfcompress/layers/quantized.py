"""Keras's own layers with a quantizer on the kernel and on the input."""

import keras
from keras import ops

from tfcompress.layers.kernel import DEPTHWISE, ComputedKernel
from tfcompress.quantizers import Quantizer


class QuantizedKernel(ComputedKernel):
    """Mixin before a Keras layer: quantizes its kernel and input as it runs.

    The latent float kernel is the variable `_kernel`, which the optimizer
    trains; the layer computes with `kernel`, its quantized value.

    Args:
        kernel_quantizer: a `tfcompress.quantizers.Quantizer`, or None for float.
        input_quantizer: the same for the layer's input.
    """

    def __init__(self, *args, kernel_quantizer=None, input_quantizer=None, **kwargs):
        super().__init__(*args, **kwargs)
        if getattr(self, "lora_rank", None):
            raise ValueError(
                f"{type(self).__name__} trains its whole kernel and takes no "
                f"`lora_rank`. Received: lora_rank={self.lora_rank}."
            )
        self.kernel_quantizer = _as_quantizer(kernel_quantizer, "kernel_quantizer")
        self.input_quantizer = _as_quantizer(input_quantizer, "input_quantizer")

    def build(self, input_shape):
        super().build(input_shape)
        if self.kernel_quantizer is not None:
            _check_unused(self.kernel_quantizer, self.name)
            self.kernel_quantizer.channel_axes = self.channel_axes
            self.kernel_quantizer.build(self._kernel.shape)
        if self.input_quantizer is not None:
            _check_unused(self.input_quantizer, self.name)
            self.input_quantizer.build(input_shape)

    def add_weight(self, *args, name=None, **kwargs):
        if name == "kernel":
            # Thresholds and codes are decided on the float32 weights; the
            # quantized kernel is cast to the compute dtype afterwards.
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    def compute_kernel(self):
        """The quantized kernel in the layer's compute dtype."""
        kernel = self._kernel
        if self.kernel_quantizer is not None:
            kernel = self.kernel_quantizer(kernel)
        return ops.cast(kernel, self.compute_dtype)

    def call(self, inputs):
        if self.input_quantizer is not None:
            inputs = ops.cast(self.input_quantizer(inputs), self.compute_dtype)
        return super().call(inputs)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_quantizer": keras.saving.serialize_keras_object(
                self.kernel_quantizer
            ),
            "input_quantizer": keras.saving.serialize_keras_object(
                self.input_quantizer
            ),
        }


def _as_quantizer(value, argument):
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is not None and not isinstance(value, Quantizer):
        raise TypeError(
            f"`{argument}` is a tfcompress.quantizers.Quantizer or None. "
            f"Received: {value!r}."
        )
    return value


def _check_unused(quantizer, layer_name):
    if quantizer.built:
        raise ValueError(
            f"The quantizer given to layer '{layer_name}' already serves another "
            f"layer. Give each layer its own. Received: {quantizer!r}."
        )


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantConv1D(QuantizedKernel, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with `kernel_quantizer` and `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantConv2D(QuantizedKernel, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with `kernel_quantizer` and `input_quantizer`.

    Example:

    >>> QuantConv2D(64, 3, padding="same", kernel_quantizer=Ternary())
    """


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantDepthwiseConv2D(QuantizedKernel, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with `kernel_quantizer`, `input_quantizer`."""

    channel_axes = DEPTHWISE


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantDense(QuantizedKernel, keras.layers.Dense):
    """`keras.layers.Dense` with `kernel_quantizer` and `input_quantizer`."""


# What takes the place of Keras's own layers.
QUANTIZED = {
    keras.layers.Conv1D: QuantConv1D,
    keras.layers.Conv2D: QuantConv2D,
    keras.layers.Dense: QuantDense,
    keras.layers.DepthwiseConv2D: QuantDepthwiseConv2D,
}
