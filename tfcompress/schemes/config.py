"""What is to be done with one layer."""

import dataclasses

import keras

from tfcompress.quantizers import Quantizer


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
