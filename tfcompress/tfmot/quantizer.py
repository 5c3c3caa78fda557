"""Quantizers that keep their state in a layer of tf_keras."""

import functools
from inspect import signature

import keras
import tensorflow as tf
from tensorflow_model_optimization.quantization import keras as tfmot

from tfcompress.cost.arithmetic import FLOAT_BITS, bops, kernel_macs
from tfcompress.layers.registry import LAST_AXIS
from tfcompress.quantizers.quantizer import copy_quantizer

_AGGREGATIONS = {
    "none": tf.VariableAggregation.NONE,
    "mean": tf.VariableAggregation.MEAN,
    "only_first_replica": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}


class Quantizer(tfmot.quantizers.Quantizer):
    """A quantizer of `tfcompress.quantizers` that keeps its state in a tf_keras layer.

    Args:
        quantizer: a `tfcompress.quantizers.Quantizer`, not built. One serves one
            tensor.
        channel_axes: the tensor's axes of output channels.
    """

    def __init__(self, quantizer, channel_axes=LAST_AXIS):
        self.quantizer = copy_quantizer(quantizer)
        self.quantizer.channel_axes = channel_axes
        self.knows_training = "training" in signature(self.quantizer.call).parameters
        self.state = {}

    def build(self, tensor_shape, name, layer):
        """Makes the quantizer's variables weights of `layer`; returns them by name."""
        # In a model that is loaded, wrappers are built before the layers in them, and
        # these weights would come behind the quantizer's.
        layer._trainable_weights.extend(layer.layer.trainable_weights)
        for part in (self.quantizer, *self.quantizer._flatten_layers(False)):
            part.add_weight = functools.partial(self._add_weight, layer, name)
        self.quantizer.build(tuple(tensor_shape))
        return self.state

    def _add_weight(self, layer, prefix, name, aggregation="none", **kwargs):
        kwargs.pop("autocast", None)  # Float32 they stay, as their dtype says.
        variable = layer.add_weight(
            name=f"{prefix}_{name}",
            aggregation=_AGGREGATIONS[aggregation],
            **{"shape": (), "dtype": "float32", **kwargs},
        )
        self.state[name] = variable
        return variable

    def __call__(self, inputs, training, weights, **kwargs):
        inputs = tf.cast(inputs, "float32")
        if self.knows_training:
            return self.quantizer.call(inputs, training=training)
        return self.quantizer.call(inputs)

    def copy_state(self, quantizer):
        """Gives a built quantizer of the same configuration the state of this one."""
        for variable in quantizer.variables:
            variable.assign(self.state[variable.name])

    def get_config(self):
        return {
            "quantizer": keras.saving.serialize_keras_object(self.quantizer),
            "channel_axes": self.quantizer.channel_axes,
        }

    @classmethod
    def from_config(cls, config):
        quantizer = keras.saving.deserialize_keras_object(config["quantizer"])
        return cls(quantizer, tuple(config["channel_axes"]))


class PricedQuantizer(Quantizer):
    """Starts its range by the kernel, and adds what the bits cost to the loss."""

    def __init__(self, config, kernel, channel_axes):
        super().__init__(config.kernel_quantizer(), channel_axes)
        self.kernel = kernel
        self.penalty = config.penalty * 1e-9
        self.activation_bits = config.activation_bits or FLOAT_BITS

    def build(self, tensor_shape, name, layer):
        state = super().build(tensor_shape, name, layer)
        self.quantizer.calibrate(self.kernel)
        layer.add_loss(lambda: self.penalty * self._bops(layer.get_output_shape_at(0)))
        return state

    def _bops(self, output_shape):
        positions = output_shape[1:-1]
        if None in positions:
            raise ValueError(
                "The cost of a layer is known where the size of its output is. "
                f"Received: output shape {output_shape}. Give the model's input a size."
            )
        macs = kernel_macs(self.kernel.shape, positions)
        bits = self.quantizer.gates.expected_bits()
        return bops(float(macs), bits, self.activation_bits)

    def fix_bits(self):
        """Ends the search with the bits of now, and the range that suits them."""
        self.quantizer.gates.freeze(self.quantizer.bits)
        self.quantizer.calibrate(self.kernel)
