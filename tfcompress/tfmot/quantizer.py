"""Quantizers that keep their state in a layer of tf_keras."""

import functools
from inspect import signature
from typing import Any, Self

import keras
import tensorflow as tf
from tensorflow_model_optimization.quantization import keras as tfmot

from tfcompress.compat.keras_private import flatten_layers
from tfcompress.compat.tfmot_private import add_layer_weights
from tfcompress.cost.arithmetic import FLOAT_BITS, bops, kernel_macs
from tfcompress.layers.registry import LAST_AXIS
from tfcompress.quantizers.quantizer import Quantizer as KerasQuantizer
from tfcompress.quantizers.quantizer import copy_quantizer
from tfcompress.types import ArrayLike, Tensor

_AGGREGATIONS = {
    "none": tf.VariableAggregation.NONE,
    "mean": tf.VariableAggregation.MEAN,
    "only_first_replica": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}


class Quantizer(tfmot.quantizers.Quantizer):
    """Quantizer of `tfcompress.quantizers` with its state in a tf_keras layer.

    Attributes:
        quantizer: `tfcompress.quantizers.Quantizer`. Copy of the one given.
        knows_training: bool. Whether the quantizer computes differently in training.
        state: `{name: variable of tf_keras}`, of the quantizer's state.

    Args:
        quantizer: a `tfcompress.quantizers.Quantizer`, not built. One object quantizes
            one tensor.
        channel_axes: tuple of ints. The tensor's axes of output channels.
    """

    def __init__(
        self,
        quantizer: KerasQuantizer,
        channel_axes: tuple[int, ...] = LAST_AXIS,
    ) -> None:
        self.quantizer = copy_quantizer(quantizer)
        self.quantizer.channel_axes = channel_axes
        self.knows_training = "training" in signature(self.quantizer.call).parameters
        self.state: dict[str, tf.Variable] = {}

    def build(
        self, tensor_shape: tf.TensorShape, name: str, layer: tfmot.QuantizeWrapper
    ) -> dict[str, tf.Variable]:
        """Makes the quantizer's variables weights of a wrapper.

        Args:
            tensor_shape: shape of the tensor to quantize.
            name: prefix of the weights' names.
            layer: the wrapper.

        Returns:
            `{name without the prefix: variable}`.
        """
        add_layer_weights(layer)
        for part in flatten_layers(self.quantizer):
            part.add_weight = functools.partial(self._add_weight, layer, name)
        self.quantizer.build(tuple(tensor_shape))
        return self.state

    def _add_weight(self, layer, prefix, name, aggregation="none", **kwargs):
        kwargs.pop("autocast", None)  # unknown to tf_keras; the dtype is float32
        variable = layer.add_weight(
            name=f"{prefix}_{name}",
            aggregation=_AGGREGATIONS[aggregation],
            **{"shape": (), "dtype": "float32", **kwargs},
        )
        self.state[name] = variable
        return variable

    def __call__(
        self,
        inputs: Tensor,
        training: bool,
        weights: dict[str, tf.Variable],
        **kwargs: Any,
    ) -> tf.Tensor:
        inputs = tf.cast(inputs, "float32")
        if self.knows_training:
            return self.quantizer.call(inputs, training=training)
        return self.quantizer.call(inputs)

    def copy_state(self, quantizer: KerasQuantizer) -> None:
        """Copies the state to a built quantizer of the same configuration."""
        for variable in quantizer.variables:
            variable.assign(self.state[variable.name])

    def get_config(self) -> dict[str, Any]:
        return {
            "quantizer": keras.saving.serialize_keras_object(self.quantizer),
            "channel_axes": self.quantizer.channel_axes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        quantizer = keras.saving.deserialize_keras_object(config["quantizer"])
        return cls(quantizer, tuple(config["channel_axes"]))


class PricedQuantizer(Quantizer):
    """Quantizer that calibrates its range, and adds the cost of its bits to the loss.

    Attributes:
        kernel: variable. Float kernel that it quantizes.
        penalty: float. Growth of the loss per bit operation.
        activation_bits: int. Bits of the layer's output, which stand for its inputs'.

    Args:
        config: the layer's `BitSharingQuantizeConfig`.
        kernel: variable of the layer's kernel.
        channel_axes: tuple of ints. The kernel's axes of output channels.
    """

    def __init__(
        self, config: Any, kernel: ArrayLike, channel_axes: tuple[int, ...]
    ) -> None:
        super().__init__(config.kernel_quantizer(), channel_axes)
        self.kernel = kernel
        self.penalty = config.penalty * 1e-9
        self.activation_bits = config.activation_bits or FLOAT_BITS

    def build(
        self, tensor_shape: tf.TensorShape, name: str, layer: tfmot.QuantizeWrapper
    ) -> dict[str, tf.Variable]:
        state = super().build(tensor_shape, name, layer)
        self.quantizer.calibrate(self.kernel)
        layer.add_loss(lambda: self.penalty * self._bops(layer.get_output_shape_at(0)))
        return state

    def _bops(self, output_shape):
        positions = output_shape[1:-1]
        if None in positions:
            raise ValueError(
                "The cost of a layer needs the size of its output. Received: output "
                f"shape {output_shape}. Give the model's input a size."
            )
        macs = kernel_macs(self.kernel.shape, positions)
        bits = self.quantizer.gates.expected_bits()
        return bops(float(macs), bits, self.activation_bits)

    def freeze_bits(self) -> None:
        """Ends the search: freezes the current bits, and calibrates the range."""
        self.quantizer.gates.freeze(self.quantizer.bits)
        self.quantizer.calibrate(self.kernel)
