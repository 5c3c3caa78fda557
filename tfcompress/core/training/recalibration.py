"""Batch normalization statistics of the present weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.compiled import compiled
from tfcompress.graph.graph import Graph


class RecalibrateBatchNorm(keras.callbacks.Callback):
    """Callback that recalibrates batch normalization before its statistics are read.

    Low-bit weights jump between steps, and moving averages lag: a model that trains
    well can evaluate at chance. The statistics are therefore computed anew, before each
    validation and at the end of each epoch and of the training.

    Args:
        recalibrate: `Recalibration` of the model.
    """

    def __init__(self, recalibrate: "Recalibration") -> None:
        super().__init__()
        self.recalibrate = recalibrate
        self.training = False
        self.stale = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.training = True

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.stale = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.training:
            self._refresh()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._refresh()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._refresh()
        self.training = False

    def _refresh(self):
        if self.stale:
            self.recalibrate()
            self.stale = False


class Recalibration:
    """Function that sets batch normalization statistics to their mean over batches.

    It skips BatchNormalizations that are not trainable. The first call compiles the
    forward pass, so one object serves a whole `fit`.

    Args:
        model: Functional or Sequential model.
        batches: list of model inputs, about `SAMPLES` samples in all. Each batch has
            the same weight.
    """

    def __init__(self, model: keras.Model, batches: list[Any]) -> None:
        self.batches = batches
        self.norms = [
            norm
            for layer in Graph(model).layers().values()
            for norm in (layer, getattr(layer, "normalization", None))
            if isinstance(norm, keras.layers.BatchNormalization) and norm.trainable
        ]
        self.variables = [
            variable
            for norm in self.norms
            for variable in (norm.moving_mean, norm.moving_variance)
        ]

        def forward(inputs):
            model(inputs, training=True)
            return [ops.convert_to_tensor(variable) for variable in self.variables]

        self.forward = compiled(model, forward)

    def __call__(self) -> None:
        """Sets the moving means and variances of the model."""
        if not self.norms:
            return
        momenta = [norm.momentum for norm in self.norms]
        try:
            for norm in self.norms:
                norm.momentum = 0.0  # its statistics become those of the last batch
            seen = [self.forward(inputs) for inputs in self.batches]
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
        for variable, values in zip(
            self.variables, zip(*seen, strict=True), strict=True
        ):
            variable.assign(np.mean(values, axis=0))
