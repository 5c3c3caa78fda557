"""Training layers with a quantizer of the kernel and one of the input."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.layers.batch_norm import fold
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import ComputedKernel, copy_other_weights
from tfcompress.layers.tensors.activation import QuantizeActivation
from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers import ActivationQuantizer, Quantizer
from tfcompress.types import Tensor


class QuantizedKernel(ComputedKernel, TrainingForm):
    """Mixin that quantizes the kernel and the input of a Keras layer.

    The mixin comes before the Keras layer among the bases. The optimizer trains the
    latent kernel, a float variable. The layer computes with `kernel`, its quantized
    value (fake quantization). The inference form is the `Packed*` layer with the same
    codes and scales, after a `QuantizeActivation` if the input is quantized.

    Args:
        kernel_quantizer: `tfcompress.quantizers.Quantizer`, or None for float.
        input_quantizer: the same for the layer's input.

    Raises:
        TypeError: if a quantizer is of another type.
        ValueError: if the layer has a `lora_rank`, or a quantizer serves another layer.
    """

    @property
    def folds_batch_norm(self) -> bool:  # type: ignore[override]
        return self.forms.is_linear

    def __init__(
        self,
        *args: Any,
        kernel_quantizer: Quantizer | None = None,
        input_quantizer: Quantizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self, "lora_rank", None):
            raise ValueError(
                f"{type(self).__name__} trains its whole kernel and takes no "
                f"`lora_rank`. Received: lora_rank={self.lora_rank}."
            )
        self.kernel_quantizer = _as_quantizer(kernel_quantizer, "kernel_quantizer")
        self.input_quantizer = _as_quantizer(input_quantizer, "input_quantizer")
        if self.input_quantizer is not None and not self.forms.is_linear:
            raise ValueError(
                f"{type(self).__name__} multiplies its kernel by no input, and takes "
                f"input_quantizer=None. Received: {input_quantizer!r}."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        if self.kernel_quantizer is not None:
            _check_unused(self.kernel_quantizer, self.name)
            self.kernel_quantizer.channel_axes = self.channel_axes
            self.kernel_quantizer.latent_kernel = lambda: self.latent_kernel
            self.kernel_quantizer.build(self.latent_kernel.shape)
        if self.input_quantizer is not None:
            _check_unused(self.input_quantizer, self.name)
            self.input_quantizer.build(input_shape)

    def add_weight(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        if name == self.forms.kernel:
            # Codes follow from the float32 weights; the quantized kernel is cast to
            # the compute dtype afterwards.
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    @property
    def latent_kernel(self) -> Any:
        """Float32 variable that is trained and quantized."""
        return self.kernel_variable

    def compute_kernel(self) -> Tensor:
        """Returns the quantized kernel in the layer's compute dtype."""
        kernel = self.latent_kernel
        if self.kernel_quantizer is not None:
            # On TensorFlow no gradient of its own takes a variable, which this reads.
            kernel = self.kernel_quantizer(ops.copy(kernel))
        return ops.cast(kernel, self.compute_dtype)

    def call(self, inputs: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            inputs = ops.cast(self.input_quantizer(inputs), self.compute_dtype)
        return super().call(inputs)

    def check_inference_form(self) -> None:
        if self.kernel_quantizer is None or not isinstance(
            self.input_quantizer, (ActivationQuantizer, type(None))
        ):
            raise ValueError(
                f"Layer '{self.name}' cannot be packed: a packed layer has a quantized "
                "kernel, and a float input or one of an ActivationQuantizer. Received: "
                f"kernel_quantizer={self.kernel_quantizer}, "
                f"input_quantizer={self.input_quantizer}."
            )

    def unfinished(self) -> list[str]:
        quantizers = (self.kernel_quantizer, self.input_quantizer)
        texts = [quantizer and quantizer.unfinished() for quantizer in quantizers]
        return [text for text in texts if text]

    def own_weights(self) -> list[Any]:
        quantizers = filter(None, (self.kernel_quantizer, self.input_quantizer))
        return [self.kernel_variable, *(x for q in quantizers for x in q.weights)]

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the plain layer in inference, in float32."""
        config = {**self.inference_config(config_of(self)), "dtype": "float32"}
        del config["kernel_quantizer"], config["input_quantizer"]
        return config

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        config = self.plain_config()
        if norm is not None:
            config["use_bias"] = True
        config["kernel_bits"] = self.kernel_quantizer.bits
        packed = self.forms.packed.from_config(config)
        if self.input_quantizer is None:
            return [packed]
        name = f"{self.name}_input"
        # Sequential models of Keras 2 give their own input that name.
        if name in names:
            name += "_levels"
        bits, signed = self.input_quantizer.bits, self.input_quantizer.signed
        return [QuantizeActivation(bits, signed, name=name), packed]

    def copy_to_inference(
        self,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        *inputs, packed = layers
        for levels in inputs:
            levels.set_scale(self.input_quantizer.scale_value())
        codes, scale = self.kernel_quantizer.encode(self.latent_kernel)
        if norm is None:
            copy_other_weights(self, packed)
        else:
            bias = self.inference_bias()
            codes, scale, bias = fold(
                codes, scale, np.zeros(()) if bias is None else bias, norm
            )
            packed.bias.assign(bias)
        packed.set_kernel(codes, scale)

    def biased_product(
        self, step: float | None
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        if self.input_quantizer is not None:
            step = self.input_quantizer.scale_value()
        if step is None or self.kernel_quantizer is None:
            return None
        return *self.kernel_quantizer.encode(self.latent_kernel), step

    def inference_bias(self) -> np.ndarray | None:
        has_bias = getattr(self, "use_bias", False)
        return ops.convert_to_numpy(self.bias) if has_bias else None

    def get_config(self) -> dict[str, Any]:
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
class QuantConv1DTranspose(QuantizedKernel, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with `kernel_quantizer` and `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantConv2DTranspose(QuantizedKernel, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with `kernel_quantizer` and `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantConv3D(QuantizedKernel, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with `kernel_quantizer` and `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantDepthwiseConv1D(QuantizedKernel, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with `kernel_quantizer`, `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantDepthwiseConv2D(QuantizedKernel, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with `kernel_quantizer`, `input_quantizer`."""


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantDense(QuantizedKernel, keras.layers.Dense):
    """`keras.layers.Dense` with `kernel_quantizer` and `input_quantizer`."""
