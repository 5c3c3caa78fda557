"""Initial ranges of quantizers, from weights and from training data."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel, QuantizedTensor
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers import BitSharing, BitSharingActivation


def quantized_layers(model: keras.Model) -> dict[str, QuantizedKernel]:
    """Returns `{name: layer}` of a model's `Quant*` layers."""
    return {
        name: layer
        for name, layer in Graph(model).layers().items()
        if isinstance(layer, QuantizedKernel)
    }


def calibrate_weights(model: keras.Model) -> None:
    """Sets the range of every `BitSharing` quantizer from its weights."""
    layers = quantized_layers(model).values()
    with progress_bar("Ranges of weights", len(layers)) as bar:
        for layer in bar.over(layers):
            if isinstance(layer.kernel_quantizer, BitSharing):
                layer.kernel_quantizer.calibrate(layer.latent_kernel)


def calibrate_activations(model: keras.Model, batches: Iterable[Any]) -> None:
    """Sets the ranges of all `BitSharingActivation` quantizers from activations.

    The activations are not quantized during the calibration.

    Args:
        model: Functional model with `Quant*` layers.
        batches: iterable of model inputs.
    """
    quantizers = _activation_quantizers(model)
    for quantizer in quantizers:
        quantizer.record()
    try:
        batches = list(batches)
        with progress_bar("Ranges of activations", len(batches)) as bar:
            for inputs in bar.over(batches):
                model(inputs, training=False)
    except BaseException:  # interruptions from the keyboard count
        for quantizer in quantizers:
            quantizer.discard()
        raise
    for quantizer in quantizers:
        quantizer.calibrate()


class CalibrateActivations(keras.callbacks.Callback):
    """Callback that calibrates activations at the start of the first training.

    Args:
        batches: iterable of model inputs.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        super().__init__()
        self.batches = batches

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        done = [
            ops.convert_to_numpy(quantizer.calibrated)
            for quantizer in _activation_quantizers(self.model)
        ]
        if not all(done):
            calibrate_activations(self.model, self.batches)


def _activation_quantizers(model: keras.Model) -> list[BitSharingActivation]:
    quantizers = [
        getattr(layer, "input_quantizer", None) or getattr(layer, "quantizer", None)
        for layer in Graph(model).layers().values()
        if isinstance(layer, (QuantizedKernel, QuantizedTensor))
    ]
    return [x for x in quantizers if isinstance(x, BitSharingActivation)]
