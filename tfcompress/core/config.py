"""Treatments of a layer: quantize it, or leave it alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import keras

from tfcompress import layers
from tfcompress.arguments import check_number
from tfcompress.graph.graph import Graph
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import copy_other_weights, kernel_of, value_of
from tfcompress.layers.registry import FORMS, forms_of
from tfcompress.quantizers import BitSharing, BitSharingActivation, Quantizer
from tfcompress.quantizers.quantizer import copy_quantizer


class Treatment(Protocol):
    """Interface of the treatments that `compress` gives a layer.

    `str(treatment)` is the text of the plan.
    """

    @staticmethod
    def why_not(layer: keras.layers.Layer) -> str | None:
        """Returns why a layer cannot be treated, or None if it can."""

    def norm_of(
        self, graph: Graph, layer: keras.layers.Layer
    ) -> keras.layers.BatchNormalization | None:
        """Returns the BatchNormalization that the student's layer absorbs, or None."""

    def student_layer(
        self,
        layer: keras.layers.Layer,
        weight_decay: float,
        norm: keras.layers.BatchNormalization | None,
    ) -> keras.layers.Layer:
        """Returns the student's layer in place of `layer`, not built.

        Args:
            layer: layer of the user's model.
            weight_decay: float, see `Scheme`.
            norm: BatchNormalization that `norm_of` returned.
        """

    def copy_weights(
        self,
        old: keras.layers.Layer,
        new: keras.layers.Layer,
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        """Copies the weights of a layer to the built student's layer."""


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """Treatment that quantizes a layer; each layer gets copies of the quantizers.

    Args:
        kernel_quantizer: `tfcompress.quantizers.Quantizer` of the weights.
        input_quantizer: `Quantizer` of the layer's input, or None to leave it float.

    Raises:
        TypeError: if a quantizer is of another type.
    """

    kernel_quantizer: Quantizer
    input_quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        for name, optional in (("kernel_quantizer", False), ("input_quantizer", True)):
            value = getattr(self, name)
            if not isinstance(value, Quantizer) and not (optional and value is None):
                raise TypeError(
                    f"`{name}` is a tfcompress.quantizers.Quantizer. "
                    f"Received: {value!r}."
                )

    def __str__(self) -> str:
        text = self.kernel_quantizer.describe("weights")
        if self.input_quantizer is not None:
            text += f", {self.input_quantizer.describe('inputs')}"
        return text

    @staticmethod
    def why_not(layer: keras.layers.Layer) -> str | None:
        kinds = [forms.plain for forms in FORMS]
        forms = forms_of(layer)
        if forms is not None and forms.own is not None:
            return forms.own.why_not(layer)
        return why_not_compressed(layer, kinds)

    @staticmethod
    def norm_of(graph: Graph, layer: keras.layers.Layer) -> None:
        return None

    def student_layer(
        self,
        layer: keras.layers.Layer,
        weight_decay: float | None,
        norm: keras.layers.BatchNormalization | None = None,
    ) -> layers.QuantizedKernel:
        return forms_of(layer).quantized.from_config(
            {
                **config_with_decay(layer, weight_decay),
                "kernel_quantizer": copy_quantizer(self.kernel_quantizer),
                "input_quantizer": copy_quantizer(self.input_quantizer),
            }
        )

    @staticmethod
    def copy_weights(
        old: keras.layers.Layer,
        new: keras.layers.Layer,
        norm: keras.layers.BatchNormalization | None = None,
    ) -> None:
        new.latent_kernel.assign(value_of(kernel_of(old)))
        copy_other_weights(old, new)

    def get_config(self) -> dict[str, Any]:
        return {
            field.name: keras.saving.serialize_keras_object(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeConfig":
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class KeepFloat:
    """Treatment that leaves a layer alone.

    Args:
        reason: str. Reason that the plan prints.
    """

    reason: str = "kept float on request"

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KeepFloat":
        return cls(**config)


def why_not_compressed(layer: keras.layers.Layer, kinds: Sequence[type]) -> str | None:
    """Returns why a treatment of certain layers leaves a layer alone, or None.

    Args:
        layer: Keras layer or operation.
        kinds: classes of `keras.layers` that the treatment compresses.
    """
    if isinstance(layer, (layers.QuantizedKernel, layers.PackedKernel)):
        return "is compressed already"
    if type(layer) in kinds:
        if getattr(layer, "lora_enabled", False):
            return "has LoRA enabled"
        if getattr(layer, "quantization_mode", None):
            return f"is quantized by Keras ({layer.quantization_mode})"
        if not getattr(layer, "tie_weights", True):
            return "has a second table, tie_weights=False"
        return None
    if not getattr(layer, "weights", None):
        return "has no weights"
    if isinstance(layer, keras.layers.BatchNormalization):
        return "batch normalization, folded when finalized where possible"
    # Recurrent layers are split into a layer of Keras and one of this library.
    names = ", ".join(kind.__name__.removesuffix("Steps") for kind in kinds)
    return f"only layers of type {names} are compressed"


def config_with_decay(
    layer: keras.layers.Layer, weight_decay: float | None
) -> dict[str, Any]:
    """Returns a layer's configuration, with an L2 penalty unless its kernel has one.

    Tables of embeddings get none: rows that the data do not read would shrink to zero.

    Args:
        layer: layer of the table of forms.
        weight_decay: float or None, see `Scheme`.
    """
    config = config_of(layer)
    for regularizer in ("kernel_regularizer", "depthwise_regularizer"):
        if regularizer in config and config[regularizer] is None and weight_decay:
            config[regularizer] = keras.regularizers.L2(weight_decay / 2)
    return config


def as_taken(config: Any, layer: keras.layers.Layer) -> Any:
    """Returns a treatment as a layer takes it: without a quantized input, if need be.

    Args:
        config: treatment or `KeepFloat`.
        layer: layer that it is for.
    """
    forms = forms_of(layer)
    has_input = isinstance(config, QuantizeConfig) and config.input_quantizer
    if forms is None or forms.is_linear or not has_input:
        return config
    return dataclasses.replace(config, input_quantizer=None)


def learned_range_config(
    weight_bits: int | Sequence[int],
    activation_bits: int | Sequence[int] | None,
    signed: bool,
    grid: str = "symmetric",
) -> QuantizeConfig:
    """Returns a `QuantizeConfig` with learned ranges for weights and activations.

    Args:
        weight_bits: int, or ints as candidates for gates; see `BitSharing`.
        activation_bits: the same for the activations; None leaves them float.
        signed: bool. Whether the activations have negative values.
        grid: str. Grid of the weights; see `BitSharing`.

    Raises:
        ValueError: if the bits are no such candidates, or the grid is unknown.
    """

    return QuantizeConfig(
        BitSharing(_candidates("weight_bits", weight_bits), grid),
        learned_range_inputs(activation_bits, signed),
    )


def learned_range_inputs(
    activation_bits: int | Sequence[int] | None, signed: bool
) -> BitSharingActivation | None:
    """Returns a quantizer of a layer's input with a learned range, None for no bits.

    Args:
        activation_bits: int, ints as candidates for gates, or None.
        signed: bool. Whether the input has negative values.

    Raises:
        ValueError: if the bits are no such candidates.
    """
    if activation_bits is None:
        return None
    return BitSharingActivation(_candidates("activation_bits", activation_bits), signed)


def _candidates(name, bits):
    """Candidates of bits, of which gates take the one or choose.

    Raises:
        ValueError: if a single one is no such integer; it names the argument.
    """
    if isinstance(bits, (list, tuple)):
        return bits
    check_number(name, bits, "an integer from 2 to 8", lambda x: x in range(2, 9))
    return (bits,)
