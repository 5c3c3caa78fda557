"""Batch normalization statistics that belong to the weights of this moment."""

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.compiled import compiled
from tfcompress.graph.graph import Graph


class RecalibrateBatchNorm(keras.callbacks.Callback):
    """Re-estimates the moving statistics whenever something is about to read them.

    Low-bit weights jump between steps, and moving averages lag behind: a model
    that trains well can evaluate at chance. Before each validation, at the end
    of each epoch and at the end of training the statistics are averaged anew
    over the same batches of training inputs, with the weights held still.

    Args:
        recalibrate: the model's `Recalibration`.
    """

    def __init__(self, recalibrate):
        super().__init__()
        self.recalibrate = recalibrate
        self.training = False
        self.stale = False

    def on_train_begin(self, logs=None):
        self.training = True

    def on_train_batch_end(self, batch, logs=None):
        self.stale = True

    def on_test_begin(self, logs=None):
        if self.training:
            self._refresh()

    def on_epoch_end(self, epoch, logs=None):
        self._refresh()

    def on_train_end(self, logs=None):
        self._refresh()
        self.training = False

    def _refresh(self):
        if self.stale:
            self.recalibrate()
            self.stale = False


class Recalibration:
    """Sets every trainable BatchNormalization's statistics to those of some batches.

    The forward pass is compiled at the first call: one object serves a whole `fit`.

    Args:
        model: a Functional or Sequential model.
        batches: list of model inputs, of about `SAMPLES` samples in all; each weighs
            the same.
    """

    def __init__(self, model, batches):
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

    def __call__(self):
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
