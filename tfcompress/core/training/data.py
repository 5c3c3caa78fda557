"""Samples of the training data, for recalibration and calibration."""

import itertools

import keras
import numpy as np

# Batch statistics average over samples and positions; 2048 images fix them well
# within what one optimizer step moves them.
SAMPLES = 2048


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
