"""Ranges of activations that start from data."""

import keras
from keras import ops

from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import BitSharing, BitSharingActivation


def quantized_layers(model):
    """`{name: layer}` of the layers of a model that quantize as they run."""
    return {
        name: layer
        for name, layer in Graph(model).layers().items()
        if isinstance(layer, QuantizedKernel)
    }


def calibrate_weights(model):
    """Starts the range of every `BitSharing` kernel from its weights."""
    for layer in quantized_layers(model).values():
        if isinstance(layer.kernel_quantizer, BitSharing):
            layer.kernel_quantizer.calibrate(layer.latent_kernel)


def calibrate_activations(model, batches):
    """Starts the ranges of all activation quantizers from what the model computes.

    While it watches, activations pass unquantized.

    Args:
        model: a Functional model with `QuantizedKernel` layers.
        batches: iterable of model inputs.
    """
    quantizers = [
        layer.input_quantizer
        for layer in quantized_layers(model).values()
        if isinstance(layer.input_quantizer, BitSharingActivation)
    ]
    for quantizer in quantizers:
        quantizer.record()
    try:
        for inputs in batches:
            model(inputs, training=False)
    finally:
        for quantizer in quantizers:
            quantizer.calibrate()


class CalibrateActivations(keras.callbacks.Callback):
    """Calibrates the activations of a student that has not been trained yet."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_begin(self, logs=None):
        quantizers = [
            layer.input_quantizer
            for layer in quantized_layers(self.model).values()
            if isinstance(layer.input_quantizer, BitSharingActivation)
        ]
        done = [ops.convert_to_numpy(quantizer.calibrated) for quantizer in quantizers]
        if not all(done):
            calibrate_activations(self.model, self.batches)
