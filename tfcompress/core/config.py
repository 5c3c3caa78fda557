"""What is to be done with one layer."""

import dataclasses
from collections.abc import Sequence

import keras

from tfcompress import layers
from tfcompress.layers.kernel import value_of
from tfcompress.layers.registry import FORMS, forms_of
from tfcompress.quantizers import BitSharing, BitSharingActivation, Quantizer
from tfcompress.quantizers.quantizer import copy_quantizer


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """Quantizers for one layer; each layer gets copies of its own.

    Args:
        kernel_quantizer: a `tfcompress.quantizers.Quantizer` for the weights.
        input_quantizer: one for the layer's input, or None to leave it float.

    Raises:
        TypeError: if one of them is something else.
    """

    kernel_quantizer: Quantizer
    input_quantizer: Quantizer | None = None

    def __post_init__(self):
        for name, optional in (("kernel_quantizer", False), ("input_quantizer", True)):
            value = getattr(self, name)
            if not isinstance(value, Quantizer) and not (optional and value is None):
                raise TypeError(
                    f"`{name}` is a tfcompress.quantizers.Quantizer. "
                    f"Received: {value!r}."
                )

    @staticmethod
    def why_not(layer):
        """Why a layer cannot be quantized, or None if it can."""
        return why_not_compressed(layer, [forms.plain for forms in FORMS])

    def __str__(self):
        text = _describe(self.kernel_quantizer)
        if self.input_quantizer is not None:
            text += f", input {_describe(self.input_quantizer)}"
        return text

    @staticmethod
    def norm_of(graph, layer):
        """The BatchNormalization that the student's layer takes up: none."""
        return None

    def student_layer(self, layer, weight_decay, norm=None):
        """The `Quant*` layer, not built, that takes the place of `layer`."""
        return forms_of(layer).quantized.from_config(
            {
                **config_with_decay(layer, weight_decay),
                "kernel_quantizer": copy_quantizer(self.kernel_quantizer),
                "input_quantizer": copy_quantizer(self.input_quantizer),
            }
        )

    @staticmethod
    def copy_weights(old, new, norm=None):
        """Gives a built student layer the weights of the layer it replaces."""
        new.latent_kernel.assign(value_of(old.kernel))
        if old.use_bias:
            new.bias.assign(value_of(old.bias))

    def get_config(self):
        return {
            field.name: keras.saving.serialize_keras_object(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config):
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class KeepFloat:
    """Leaves a layer as it is.

    Args:
        reason: why, as the plan prints it.
    """

    reason: str = "kept float on request"

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def why_not_compressed(layer, kinds):
    """Why a layer is left alone by what compresses only `kinds`, or None.

    Args:
        layer: a Keras layer or operation.
        kinds: the classes of plain Keras layers that are compressed.
    """
    if isinstance(layer, (layers.QuantizedKernel, layers.PackedKernel)):
        return "is compressed already"
    if type(layer) in kinds:
        if getattr(layer, "lora_enabled", False):
            return "has LoRA enabled"
        if getattr(layer, "quantization_mode", None):
            return f"is quantized by Keras ({layer.quantization_mode})"
        return None
    if not getattr(layer, "weights", None):
        return "has no weights"
    if isinstance(layer, keras.layers.BatchNormalization):
        return "batch normalization, folded when finalized where possible"
    names = ", ".join(kind.__name__ for kind in kinds)
    return f"only layers of type {names} are compressed"


def config_with_decay(layer, weight_decay):
    """A layer's configuration, with an L2 penalty unless its kernel has one.

    Args:
        layer: a convolution or dense layer.
        weight_decay: see `Scheme`.
    """
    config = layer.get_config()
    regularizer = (
        "kernel_regularizer"
        if "kernel_regularizer" in config
        else "depthwise_regularizer"
    )
    if config[regularizer] is None and weight_decay:
        config[regularizer] = keras.regularizers.L2(weight_decay / 2)
    return config


def learned_range_config(
    weight_bits: int | Sequence[int],
    activation_bits: int | Sequence[int],
    signed: bool,
    grid: str = "symmetric",
) -> QuantizeConfig:
    """Returns a `QuantizeConfig` with learned ranges for weights and activations.

    Args:
        weight_bits: int, or ints as candidates for gates; see `BitSharing`.
        activation_bits: the same for the activations.
        signed: bool. Whether the activations have negative values.
        grid: str. Grid of the weights; see `BitSharing`.

    Raises:
        ValueError: if the bits are no such candidates, or the grid is unknown.
    """

    def candidates(bits):
        return bits if isinstance(bits, (list, tuple)) else (bits,)

    return QuantizeConfig(
        BitSharing(candidates(weight_bits), grid),
        BitSharingActivation(candidates(activation_bits), signed),
    )


def _describe(quantizer):
    bits = "/".join(map(str, quantizer.candidates))
    return f"{type(quantizer).__name__} {bits} bit"
