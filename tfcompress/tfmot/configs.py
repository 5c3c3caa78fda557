"""Quantization configurations for layers of tf_keras."""

from collections.abc import Sequence
from typing import Any, Self

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization import keras as tfmot

from tfcompress import quantizers
from tfcompress.arguments import check_number
from tfcompress.graph.signs import NON_NEGATIVE_ACTIVATIONS
from tfcompress.layers.registry import FORMS
from tfcompress.tfmot.quantizer import PricedQuantizer, Quantizer
from tfcompress.types import ArrayLike

# `{class of tf_keras: Forms}` of the layers that are quantized.
_KERNELS = {
    getattr(tf_keras.layers, forms.plain.__name__): forms
    for forms in FORMS
    if forms.is_linear
}


class Config(tfmot.QuantizeConfig):
    """Base class of the configurations.

    The kernel of a layer is quantized if it has one, and the output of any layer if
    there are `activation_bits`.

    Args:
        activation_bits: int or None. Bits of the layer's output, 2 to 8; None for
            float.
        initial_clip: float, positive. Initial end of the output's learned range.
    """

    def __init__(
        self, activation_bits: int | None = None, initial_clip: float = 6.0
    ) -> None:
        self.activation_bits = activation_bits
        self.initial_clip = initial_clip
        self.get_output_quantizers(tf_keras.layers.ReLU())  # checks the arguments

    def kernel_quantizer(self) -> quantizers.Quantizer:
        """Creates a quantizer for a kernel."""
        raise NotImplementedError

    def get_weights_and_quantizers(
        self, layer: tf_keras.layers.Layer
    ) -> list[tuple[tf.Variable, Quantizer]]:
        if type(layer) not in _KERNELS:
            self._check_without_kernel(layer)
            return []
        forms = _KERNELS[type(layer)]
        kernel = getattr(layer, forms.legacy_kernel)
        return [(kernel, self.serve(kernel, forms.channel_axes))]

    def serve(self, kernel: ArrayLike, channel_axes: tuple[int, ...]) -> Quantizer:
        """Creates the `Quantizer` of a layer's kernel.

        Args:
            kernel: variable of the kernel.
            channel_axes: the kernel's axes of output channels.
        """
        return Quantizer(self.kernel_quantizer(), channel_axes)

    def set_quantize_weights(
        self, layer: tf_keras.layers.Layer, quantize_weights: Sequence[tf.Tensor]
    ) -> None:
        for kernel in quantize_weights:
            attribute = _KERNELS[type(layer)].legacy_kernel
            setattr(layer, attribute, tf.cast(kernel, layer.compute_dtype))

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list:
        return []  # `get_output_quantizers` covers every activation

    def set_quantize_activations(
        self, layer: tf_keras.layers.Layer, quantize_activations: Sequence
    ) -> None:
        pass

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[Quantizer]:
        if self.activation_bits is None:
            return []
        return [
            Quantizer(
                quantizers.UniformActivation(
                    self.activation_bits, _may_be_negative(layer), self.initial_clip
                )
            )
        ]

    def _check_without_kernel(self, layer):
        if any(len(weight.shape) > 1 for weight in layer.weights):
            kinds = ", ".join(kind.__name__ for kind in _KERNELS)
            raise ValueError(
                f"Layers of type {kinds} have kernels that can be quantized. Received: "
                f"layer '{layer.name}' of type {type(layer).__name__}. Do not annotate "
                "it."
            )
        if self.activation_bits is None:
            raise ValueError(
                f"`activation_bits` is expected for layer '{layer.name}' of type "
                f"{type(layer).__name__}, which has no kernel: only its output can be "
                "quantized. Received: activation_bits=None."
            )

    def get_config(self) -> dict[str, Any]:
        return {
            "activation_bits": self.activation_bits,
            "initial_clip": self.initial_clip,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class TernaryQuantizeConfig(Config):
    """Configuration for pruned ternary kernels; see `tfcompress.quantizers.Ternary`.

    Args:
        sparsity: float or None. Share of zeros in the kernel, in (0, 1), from the first
            step on; None for a threshold of 0.7 mean magnitudes.
        activation_bits, initial_clip: output of the layer, as in
            `UniformQuantizeConfig`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        activation_bits: int | None = None,
        initial_clip: float = 6.0,
    ) -> None:
        super().__init__(activation_bits, initial_clip)
        self.sparsity = sparsity
        self.kernel_quantizer()  # checks the argument

    def kernel_quantizer(self) -> quantizers.Ternary:
        return quantizers.Ternary(self.sparsity)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sparsity": self.sparsity}


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class UniformQuantizeConfig(Config):
    """Configuration for kernels on a uniform grid per channel.

    See `tfcompress.quantizers.Uniform`.

    Args:
        weight_bits: int. Bits of the kernel, 2 to 8.
        activation_bits: int or None. Bits of the layer's output, 2 to 8, with a learned
            range (`tfcompress.quantizers.UniformActivation`); None for float. A layer
            without a kernel needs them.
        initial_clip: float, positive. Initial end of the output's learned range.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int | None = None,
        initial_clip: float = 6.0,
    ) -> None:
        super().__init__(activation_bits, initial_clip)
        self.weight_bits = weight_bits
        self.kernel_quantizer()  # checks the argument

    def kernel_quantizer(self) -> quantizers.Uniform:
        return quantizers.Uniform(self.weight_bits)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight_bits": self.weight_bits}


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class BitSharingQuantizeConfig(Config):
    """Configuration for kernels with bits that gates learn.

    See `tfcompress.quantizers.BitSharing`. The loss grows by `penalty` for every
    billion bit operations of the layer. The bits of its output stand for those of its
    input. A budget for the whole model, and gates of activations and of filters, need
    the whole graph: `tfcompress.compress` on a Keras 3 model has them.

    Args:
        penalty: float, finite, >= 0. Growth of the loss per billion bit operations.
        bits: sequence of ints. Candidates, some of 2 to 8.
        activation_bits, initial_clip: output of the layer, as in
            `UniformQuantizeConfig`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        penalty: float,
        bits: Sequence[int] = (2, 4, 8),
        activation_bits: int | None = None,
        initial_clip: float = 6.0,
    ) -> None:
        super().__init__(activation_bits, initial_clip)
        check_number(
            "penalty",
            penalty,
            "a finite number >= 0, in units of the loss per billion bit operations",
            lambda x: 0 <= x < float("inf"),
        )
        self.penalty = penalty
        self.bits = tuple(bits)
        self.kernel_quantizer()  # checks the argument

    def kernel_quantizer(self) -> quantizers.BitSharing:
        return quantizers.BitSharing(self.bits)

    def serve(self, kernel: ArrayLike, channel_axes: tuple[int, ...]) -> Quantizer:
        return PricedQuantizer(self, kernel, channel_axes)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "penalty": self.penalty, "bits": self.bits}


class AnnotatedOnlyScheme(tfmot.QuantizeScheme):
    """Scheme for `quantize_apply` that quantizes annotated layers only.

    tensorflow-model-optimization's default scheme also quantizes the model's inputs
    and the outputs of layers before annotated ones, to 8 bits. `finalize` ignores
    these quantizers.
    """

    def get_layout_transformer(self) -> "_KeepLayout":
        return _KeepLayout()

    def get_quantize_registry(self) -> "_NothingByDefault":
        return _NothingByDefault()


class _KeepLayout:
    def apply(self, model: tf_keras.Model, layer_quantize_map: dict) -> tuple:
        return model, layer_quantize_map


class _NothingByDefault:
    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        return False


def _may_be_negative(layer):
    if isinstance(layer, tf_keras.layers.ReLU):
        return bool(layer.negative_slope) or layer.threshold < 0
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    return name not in NON_NEGATIVE_ACTIVATIONS
