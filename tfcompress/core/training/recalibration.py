"""Batch normalization statistics that belong to the weights of this moment."""

import itertools

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.compiled import compiled
from tfcompress.graph.graph import Graph

# Batch statistics average over samples and positions; 2048 images fix them well
# within what one optimizer step moves them.
SAMPLES = 2048


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


def take_inputs(data, batch_size=None, validation_split=0.0, samples=SAMPLES):
    """The inputs of about `samples` training samples, and the data, unconsumed.

    Args:
        data: what `fit` takes as `x`: arrays in any structure, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch `DataLoader`
            or a generator of batches.
        batch_size: for arrays; 32 if None, as in `fit`.
        validation_split: for arrays; the share at the end that is not trained on.
        samples: how many samples are enough.

    Returns:
        `(batches, data)`: a list of inputs, and what to train on in place of
        `data` (a generator with the batches put back, else `data` itself).
    """
    leaves = keras.tree.flatten(data)
    if all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves):
        size = int(leaves[0].shape[0] * (1.0 - validation_split))
        # Evenly spaced: the samples may be sorted by class.
        chosen = np.linspace(0, size - 1, min(size, samples)).astype(int)
        parts = np.array_split(chosen, max(1, len(chosen) // (batch_size or 32)))
        arrays = keras.tree.map_structure(np.asarray, data)
        return [_rows(arrays, part) for part in parts], data
    if isinstance(data, keras.utils.PyDataset):
        chosen = np.linspace(0, data.num_batches - 1, min(data.num_batches, samples))
        return _inputs(map(data.__getitem__, chosen.astype(int)), samples)[0], data
    batches, read = _inputs(data, samples)
    if iter(data) is data:
        data = itertools.chain(read, data)
        return batches, (batch for batch in data)
    return batches, data


def _rows(arrays, rows):
    return keras.tree.map_structure(lambda array: array[rows], arrays)


def _inputs(data, samples):
    """Inputs of the first `samples` samples, and the batches that were read."""
    inputs, read, seen = [], [], 0
    for batch in data:
        read.append(batch)
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        inputs.append(x)
        seen += keras.tree.flatten(x)[0].shape[0]
        if seen >= samples:
            break
    return inputs, read
