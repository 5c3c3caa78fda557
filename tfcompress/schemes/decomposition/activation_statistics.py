"""Statistics and ranges of the inputs and hidden outputs of factorized layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from keras import ops

from tfcompress.core.checks import check_finite_activations
from tfcompress.core.training.calibration import RANGE_SAMPLES, sampled_calls
from tfcompress.core.training.compiled import compiled
from tfcompress.core.training.data import some_batches
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.layers import FactorizedKernel
from tfcompress.progress_bar import progress_bar


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one layer over calls, samples and positions.

    Attributes:
        input_variances: float64 array (input channels,).
        hidden_covariance: float64 array (rank, rank). Covariance of the outputs of the
            layer's basis.
    """

    input_variances: np.ndarray
    hidden_covariance: np.ndarray


class MeasureActivations:
    """Measures the `ActivationStatistics` of a model's factorized layers.

    Batch normalization has the statistics of each batch, as in training. The forward
    pass is compiled at the first call.

    Args:
        recalibrate: `Recalibration` of the model. Each of its batches weighs the same.
        layers: dict of str to `FactorizedKernel`. Layers of the model by name.
    """

    def __init__(
        self, recalibrate: Recalibration, layers: Mapping[str, FactorizedKernel]
    ) -> None:
        self.layers = layers
        self._recalibrate = recalibrate
        self._run = compiled(recalibrate.model, self._sums)

    def __call__(self) -> dict[str, ActivationStatistics]:
        """Returns the statistics of every layer by name.

        Raises:
            ValueError: if activations are not finite.
        """
        batches = self._recalibrate.batches
        with progress_bar("Statistics of activations", len(batches)) as bar:
            seen = [self._run(inputs) for inputs in bar.over(batches)]
        return {n: _statistics(n, [sums[n] for sums in seen]) for n in self.layers}

    def _sums(self, inputs):
        return _observed(self._recalibrate, self.layers, inputs, _call_sums)


def calibrate_hidden(
    recalibrate: Recalibration, layers: Mapping[str, FactorizedKernel]
) -> None:
    """Sets the ranges of the tensors between basis and coefficients.

    Args:
        recalibrate: `Recalibration` of the model.
        layers: dict of str to `FactorizedKernel`. Layers of the model by name, with
            `int8=True` and masks, which compute in float so far.

    Raises:
        ValueError: if activations are not finite. No range is changed then.
    """
    kept = {layer: layer.kept_ranks() for layer in layers.values()}

    def hidden(inputs):
        return _observed(
            recalibrate,
            layers,
            inputs,
            lambda layer, x, training: ops.take(
                layer.hidden(x, training), kept[layer], layer.channel_axis
            ),
        )

    batches = some_batches(recalibrate.batches, RANGE_SAMPLES)
    found = sampled_calls(recalibrate.model, hidden, batches, "Ranges between factors")
    for name, values in found.items():
        layers[name].hidden_quantizer.calibrate(values)


def _observed(recalibrate, layers, inputs, function):
    """Results of a forward pass, which normalizes by the statistics of its batch.

    Returns:
        `{name: results of function(layer, inputs, training) for each call}`.
    """
    calls = {name: [] for name in layers}
    with recalibrate.batch_statistics() as training:
        try:
            for name, layer in layers.items():
                layer.observer = calls[name].append
            recalibrate.model(inputs, training=training)
        finally:
            for layer in layers.values():
                layer.observer = None
        return {
            name: [function(layer, x, training) for x in calls[name]]
            for name, layer in layers.items()
        }


def _call_sums(layer, inputs, training):
    """Means and mean squares of the inputs, means and products of the hidden."""
    inputs, hidden = (
        ops.cast(ops.moveaxis(x, layer.channel_axis, -1), "float32")
        for x in (inputs, layer.hidden(inputs, training))
    )
    inputs = ops.reshape(inputs, (-1, inputs.shape[-1]))
    hidden = ops.reshape(hidden, (-1, hidden.shape[-1]))
    count = ops.cast(ops.shape(hidden)[0], "float32")
    return (
        ops.mean(inputs, axis=0),
        ops.mean(ops.square(inputs), axis=0),
        ops.mean(hidden, axis=0),
        ops.matmul(ops.transpose(hidden), hidden) / count,
    )


def _statistics(name, batches):
    calls = [call for batch in batches for call in batch]
    mean, square, hidden_mean, product = (
        np.mean(values, axis=0, dtype=np.float64) for values in zip(*calls, strict=True)
    )
    check_finite_activations(name, square, product)
    covariance = product - np.outer(hidden_mean, hidden_mean)
    # Differences of float32 sums: a variance of zero may come out negative.
    np.fill_diagonal(covariance, np.maximum(np.diag(covariance), 0.0))
    return ActivationStatistics(np.maximum(square - mean**2, 0.0), covariance)
