"""Initial ranges of quantizers, from weights and from training data."""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import keras
from keras import ops

from tfcompress.core.checks import check_finite_activations
from tfcompress.core.training.recalibration import Recalibration
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


def calibrate_activations(
    model: keras.Model,
    batches: Iterable[Any],
    recalibrate: Recalibration | None = None,
) -> None:
    """Sets the ranges of all `BitSharingActivation` quantizers from activations.

    The activations are not quantized during the calibration.

    Args:
        model: Functional model with `Quant*` layers.
        batches: iterable of model inputs.
        recalibrate: `Recalibration` of a model whose batch normalization statistics are
            not those of activations that are not quantized. They are set to these:
            deep networks would amplify the difference to infinity.

    Raises:
        ValueError: if an activation is NaN or infinite. No range is changed then.
    """
    quantizers = _activation_quantizers(model)
    with recorded(quantizers.values()):
        if recalibrate is not None:
            recalibrate.eagerly()
            for quantizer in quantizers.values():
                quantizer.record()  # anew
        batches = list(batches)
        with progress_bar("Ranges of activations", len(batches)) as bar:
            for inputs in bar.over(batches):
                model(inputs, training=False)
        for name, quantizer in quantizers.items():
            check_finite_activations(name, *quantizer.recorded())
        for quantizer in quantizers.values():
            quantizer.calibrate()


@contextlib.contextmanager
def recorded(quantizers: Collection[BitSharingActivation]) -> Iterator[None]:
    """Lets quantizers record their unchanged inputs in a `with` statement."""
    for quantizer in quantizers:
        quantizer.record()
    try:
        yield
    finally:  # also after an interruption from the keyboard
        for quantizer in quantizers:
            quantizer.discard()


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
            for quantizer in _activation_quantizers(self.model).values()
        ]
        if not all(done):
            calibrate_activations(self.model, self.batches)


def _activation_quantizers(model: keras.Model) -> dict[str, BitSharingActivation]:
    """The quantizers by the names of their layers."""
    quantizers = {
        name: getattr(layer, "input_quantizer", None)
        or getattr(layer, "quantizer", None)
        for name, layer in Graph(model).layers().items()
        if isinstance(layer, (QuantizedKernel, QuantizedTensor))
    }
    return {
        name: x for name, x in quantizers.items() if isinstance(x, BitSharingActivation)
    }
