"""Initial ranges of quantizers, from weights and from training data."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.checks import check_finite_activations
from tfcompress.core.training.compiled import compiled
from tfcompress.core.training.data import some_batches
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel, QuantizedTensor
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers import BitSharing, BitSharingActivation
from tfcompress.quantizers.ranges import CLIP_SAMPLES, sampled_values
from tfcompress.types import Tensor

# Samples that suffice for the ranges of activations.
RANGE_SAMPLES = 512


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


def calibrate_activations(recalibrate: Recalibration) -> dict[str, np.ndarray]:
    """Sets the ranges of all `BitSharingActivation` quantizers from activations.

    Args:
        recalibrate: `Recalibration` of a Functional model with `Quant*` layers.
            `RANGE_SAMPLES` samples of its batches are used.

    Returns:
        The activations, in the form of `read_activations`.

    Raises:
        ValueError: if an activation is NaN or infinite. No range is changed then.
    """
    quantizers = _activation_quantizers(recalibrate.model)
    batches = some_batches(recalibrate.batches, RANGE_SAMPLES)
    read = read_activations(recalibrate, quantizers, batches)
    for name, quantizer in quantizers.items():
        quantizer.calibrate(read[name])
    return read


def read_activations(
    recalibrate: Recalibration,
    quantizers: Mapping[str, BitSharingActivation],
    batches: Sequence[Any],
) -> dict[str, np.ndarray]:
    """Returns activations that quantizers read while none of these rounds.

    Batch normalization has the statistics of each batch, as in training. Its moving
    statistics may be far from them, after few steps or with other roundings. A deep
    network multiplies the difference from layer to layer.

    Args:
        recalibrate: `Recalibration` of the model with these quantizers.
        quantizers: `{layer name: quantizer}`.
        batches: list of model inputs.

    Returns:
        `{layer name: float32 vector}`, see `sampled_calls`.

    Raises:
        ValueError: if an activation is NaN or infinite.
    """
    if not quantizers:
        return {}

    def reads(inputs):
        with (
            recorded(quantizers.values()),
            recalibrate.batch_statistics() as training,
        ):
            recalibrate.model(inputs, training=training)
            return {name: x.recorded() for name, x in quantizers.items()}

    read = sampled_calls(recalibrate.model, reads, batches, "Ranges of activations")
    none: np.ndarray = np.zeros(0, "float32")
    return {name: read.get(name, none) for name in quantizers}


def sampled_calls(
    model: keras.Model,
    function: Callable[[Any], dict[str, list[Tensor]]],
    batches: Sequence[Any],
    title: str,
) -> dict[str, np.ndarray]:
    """Compiles a function of a model's inputs, and samples the tensors it returns.

    Memory does not grow with the number of batches: of each batch as many values are
    taken as it needs for `CLIP_SAMPLES` in all.

    Args:
        model: Functional or Sequential model.
        function: from inputs to `{layer name: tensors}`.
        batches: list of model inputs.
        title: str. Title of the progress bar.

    Returns:
        `{layer name: float32 vector}`, without layers that have no tensors.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    count = -(-CLIP_SAMPLES // max(1, len(batches)))

    def sample(turn_and_inputs):
        turn, inputs = turn_and_inputs
        return {
            name: [sampled_values(x, count, turn) for x in tensors]
            for name, tensors in function(inputs).items()
        }

    run = compiled(model, sample)
    found: dict[str, list[np.ndarray]] = {}
    with progress_bar(title, len(batches)) as bar:
        for turn, inputs in enumerate(bar.over(batches)):
            for name, calls in run((np.array(turn, "int32"), inputs)).items():
                for values, check in calls:
                    check_finite_activations(name, values, check)
                    found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


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
        recalibrate: `Recalibration` of the model.
    """

    def __init__(self, recalibrate: Recalibration) -> None:
        super().__init__()
        self.recalibrate = recalibrate
        self._read: dict[str, np.ndarray] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        done = [
            ops.convert_to_numpy(quantizer.calibrated)
            for quantizer in _activation_quantizers(self.model).values()
        ]
        if not all(done):
            self._read = calibrate_activations(self.recalibrate)

    def take_activations(self) -> dict[str, np.ndarray] | None:
        """Returns the activations of this calibration, once; None if there was none."""
        read, self._read = self._read, None
        return read


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
