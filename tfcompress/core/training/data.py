"""Samples of the training data, for recalibration and calibration."""

import itertools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

# Statistics of 2048 images, averaged over samples and positions, vary less than one
# optimizer step changes them.
SAMPLES = 2048


def take_inputs(
    data: Any,
    batch_size: int | None = None,
    validation_split: float = 0.0,
    samples: int = SAMPLES,
) -> tuple[list[Any], Any]:
    """Returns the inputs of about `samples` training samples, and the whole data.

    Args:
        data: argument `x` of `fit`: arrays in any structure, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader` or a generator of batches.
        batch_size: int or None. Samples per batch of arrays; None is 32, as in `fit`.
        validation_split: float in [0, 1). Share at the end of arrays that is not
            trained on.
        samples: int. Number of samples that suffices.

    Returns:
        `(batches, data)`: a list of model inputs, and the data to train on. The second
        is a generator with the batches put back, or else `data` itself.
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


def _rows(arrays: Any, rows: np.ndarray) -> Any:
    return keras.tree.map_structure(lambda array: array[rows], arrays)


def _inputs(data: Iterable[Any], samples: int) -> tuple[list[Any], list[Any]]:
    """Inputs of the first `samples` samples, and the batches that were read."""
    inputs: list[Any] = []
    read: list[Any] = []
    seen = 0
    for batch in data:
        read.append(batch)
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        inputs.append(x)
        seen += keras.tree.flatten(x)[0].shape[0]
        if seen >= samples:
            break
    return inputs, read
