"""Training layer that quantizes a tensor between other layers."""

from typing import Any

import keras
from keras import ops

from tfcompress.layers.tensors.activation import QuantizeActivation
from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers import ActivationQuantizer
from tfcompress.types import Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedTensor(TrainingForm, keras.layers.Layer):
    """Layer that rounds its input to the levels of a quantizer.

    It stands where a file with int8 activations stores a tensor, such as the operands
    of an addition. A layer that is called on several tensors gives them one range. The
    inference form is a `QuantizeActivation` of the same name.

    Args:
        quantizer: `tfcompress.quantizers.ActivationQuantizer`.

    Input: float tensor of any shape. Output: tensor of the same shape, in the layer's
    compute dtype.

    Raises:
        TypeError: if the quantizer is of another type.
    """

    passes_channels = True

    def __init__(self, quantizer: ActivationQuantizer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        if isinstance(quantizer, dict):
            quantizer = keras.saving.deserialize_keras_object(quantizer)
        if not isinstance(quantizer, ActivationQuantizer):
            raise TypeError(
                "`quantizer` is a tfcompress.quantizers.ActivationQuantizer. "
                f"Received: {quantizer!r}."
            )
        self.quantizer = quantizer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.quantizer.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        return ops.cast(self.quantizer(inputs), self.compute_dtype)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def unfinished(self) -> list[str]:
        text = self.quantizer.unfinished()
        return [text] if text else []

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        quantizer = self.quantizer
        return [QuantizeActivation(quantizer.bits, quantizer.signed, name=self.name)]

    def copy_to_inference(
        self,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        layers[0].set_scale(self.quantizer.scale_value())

    def get_config(self) -> dict[str, Any]:
        quantizer = keras.saving.serialize_keras_object(self.quantizer)
        return {**super().get_config(), "quantizer": quantizer}
