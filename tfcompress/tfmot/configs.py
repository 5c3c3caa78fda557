"""What is to be done with one layer of tf_keras."""

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization import keras as tfmot

from tfcompress import quantizers
from tfcompress.graph.signs import NON_NEGATIVE_ACTIVATIONS
from tfcompress.layers.registry import FORMS
from tfcompress.tfmot.quantizer import PricedQuantizer, Quantizer

# `{class of tf_keras: Forms}` of the layers that are quantized.
_KERNELS = {getattr(tf_keras.layers, x.plain.__name__): x for x in FORMS}


class Config(tfmot.QuantizeConfig):
    """What the configurations below share.

    A layer with a kernel has it quantized. Any layer has its output quantized if there
    are `activation_bits`: an activation, say, in front of the layer that reads it.

    Args:
        activation_bits: of the output, 2 to 8, or None for float.
        initial_clip: where the learned range of the output starts, a positive number.
    """

    def __init__(self, activation_bits=None, initial_clip=6.0):
        self.activation_bits = activation_bits
        self.initial_clip = initial_clip
        self.get_output_quantizers(tf_keras.layers.ReLU())  # checks them

    def kernel_quantizer(self):
        """A new `tfcompress.quantizers.Quantizer` for a kernel."""
        raise NotImplementedError

    def get_weights_and_quantizers(self, layer):
        if type(layer) not in _KERNELS:
            self._check_without_kernel(layer)
            return []
        forms = _KERNELS[type(layer)]
        kernel = getattr(layer, forms.legacy_kernel)
        return [(kernel, self.serve(kernel, forms.channel_axes))]

    def serve(self, kernel, channel_axes):
        """The `Quantizer` of a layer's kernel."""
        return Quantizer(self.kernel_quantizer(), channel_axes)

    def set_quantize_weights(self, layer, quantize_weights):
        for kernel in quantize_weights:
            attribute = _KERNELS[type(layer)].legacy_kernel
            setattr(layer, attribute, tf.cast(kernel, layer.compute_dtype))

    def get_activations_and_quantizers(self, layer):
        return []  # `get_output_quantizers` does it, for any activation.

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
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
                f"Layer '{layer.name}' of type {type(layer).__name__} has no kernel: "
                "only its output can be quantized. Received: activation_bits=None."
            )

    def get_config(self):
        return {
            "activation_bits": self.activation_bits,
            "initial_clip": self.initial_clip,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __eq__(self, other):
        return type(other) is type(self) and other.get_config() == self.get_config()

    __hash__ = None


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class TernaryQuantizeConfig(Config):
    """Pruned ternary kernels; see `tfcompress.quantizers.Ternary`.

    Args:
        sparsity: share of zeros in the kernel, in (0, 1), from the first step on, or
            None for the cut with the best cosine.
        activation_bits, initial_clip: of the layer's output, see
            `UniformQuantizeConfig`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, sparsity=None, activation_bits=None, initial_clip=6.0):
        super().__init__(activation_bits, initial_clip)
        self.sparsity = sparsity
        self.kernel_quantizer()  # checks it

    def kernel_quantizer(self):
        return quantizers.Ternary(self.sparsity)

    def get_config(self):
        return {**super().get_config(), "sparsity": self.sparsity}


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class UniformQuantizeConfig(Config):
    """Kernels on a uniform grid per channel; see `tfcompress.quantizers.Uniform`.

    Args:
        weight_bits: of the kernel, 2 to 8.
        activation_bits: of the layer's output, 2 to 8, with a learned range
            (`tfcompress.quantizers.UniformActivation`); None for float. A layer
            without a kernel needs them.
        initial_clip: where that range starts, a positive number.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, weight_bits=8, activation_bits=None, initial_clip=6.0):
        super().__init__(activation_bits, initial_clip)
        self.weight_bits = weight_bits
        self.kernel_quantizer()  # checks them

    def kernel_quantizer(self):
        return quantizers.Uniform(self.weight_bits)

    def get_config(self):
        return {**super().get_config(), "weight_bits": self.weight_bits}


@tf_keras.utils.register_keras_serializable(package="tfcompress")
class BitSharingQuantizeConfig(Config):
    """Kernels whose bits are learned by gates; see `tfcompress.quantizers.BitSharing`.

    The loss grows by `penalty` for every billion bit operations of the layer, its
    outputs' bits taken for its inputs'. A budget for the whole model, gates of
    activations and of filters need the whole graph: `tfcompress.compress` on a Keras 3
    model has them.

    Args:
        penalty: finite, >= 0.
        bits: candidates, some of 2, 4 and 8.
        activation_bits, initial_clip: of the layer's output, see
            `UniformQuantizeConfig`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, penalty, bits=(2, 4, 8), activation_bits=None, initial_clip=6.0):
        super().__init__(activation_bits, initial_clip)
        if not 0 <= penalty < float("inf"):
            raise ValueError(
                "`penalty` is a finite number >= 0, in units of the loss per billion "
                f"bit operations. Received: penalty={penalty}."
            )
        self.penalty = penalty
        self.bits = tuple(bits)
        self.kernel_quantizer()  # checks them

    def kernel_quantizer(self):
        return quantizers.BitSharing(self.bits)

    def serve(self, kernel, channel_axes):
        return PricedQuantizer(self, kernel, channel_axes)

    def get_config(self):
        return {**super().get_config(), "penalty": self.penalty, "bits": self.bits}


class AnnotatedOnlyScheme(tfmot.QuantizeScheme):
    """For `quantize_apply`: quantizes what is annotated, and nothing else.

    tensorflow-model-optimization's default scheme also quantizes the model's inputs
    and the outputs of layers in front of annotated ones, to 8 bits. `finalize` does not
    take these over.
    """

    def get_layout_transformer(self):
        return _KeepLayout()

    def get_quantize_registry(self):
        return _NothingByDefault()


class _KeepLayout:
    def apply(self, model, layer_quantize_map):
        return model, layer_quantize_map


class _NothingByDefault:
    def supports(self, layer):
        return False


def _may_be_negative(layer):
    if isinstance(layer, tf_keras.layers.ReLU):
        return bool(layer.negative_slope) or layer.threshold < 0
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None)
    return name not in NON_NEGATIVE_ACTIVATIONS
