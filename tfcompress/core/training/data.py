"""Samples of the training data, for recalibration and calibration."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfcompress.compat import keras_private
from tfcompress.progress_bar import announced, progress_bar

# Statistics of 2048 images, averaged over samples and positions, vary less than one
# optimizer step changes them.
SAMPLES = 2048
# Inputs that are kept for a whole `fit`. Large inputs have many positions to average
# over, so fewer samples do.
MAX_BYTES = 256 * 2**20
# Data that can only be read in order are read for up to this many times the batches
# that are kept: enough for all of 65 536 small images.
READ_FACTOR = 32


class Inputs(NamedTuple):
    """Inputs of some training samples.

    Attributes:
        batches: list of model inputs, as NumPy arrays on the host. Ragged tensors stay
            as they are, and sparse arrays become dense.
        data: the data to train on. A generator has the batches that were read put
            back; other data are the argument itself.
        steps: int or None. Batches of an epoch, if all of them were read.
    """

    batches: list[Any]
    data: Any
    steps: int | None = None


def take_inputs(
    data: Any,
    batch_size: int | None = None,
    validation_split: float = 0.0,
    samples: int = SAMPLES,
    *,
    model: keras.Model | None = None,
    steps_per_epoch: int | None = None,
    shuffle: bool = True,
) -> Inputs:
    """Returns the inputs of about `samples` training samples, and the whole data.

    The samples are spread over the data, which may be sorted by class:

    - arrays: evenly spaced rows. Only these are read from lazily read arrays, such as
      those of h5py. Batches mix them if `fit` shuffles.
    - `keras.utils.PyDataset`: evenly spaced batches, by index. Of an infinite one,
      batches of the first epoch.
    - `tf.data.Dataset`, `tf.distribute.DistributedDataset`, torch or grain loaders:
      evenly spaced batches of the first ones. At most `READ_FACTOR` times the batches
      that are kept are read, and at most `steps_per_epoch`.
    - generators: as before, and at most `MAX_BYTES` are read, since they have to be
      kept and put back.

    At most `MAX_BYTES` of inputs are kept, but at least one batch.

    Args:
        data: argument `x` of `keras.Model.fit`. For anything else the batches are
            empty, and `fit` raises an error.
        batch_size: int or None. Samples per batch of arrays; None is 32, as in `fit`,
            or follows from `steps_per_epoch`.
        validation_split: float in [0, 1). Share at the end of arrays that is not
            trained on.
        samples: int. Number of samples that suffices.
        model: model to train, or None. If the data have batches of the size that its
            inputs are fixed to, all batches have that size. With other batches the
            model computes on any, as a Sequential that was built by a call does.
        steps_per_epoch: int or None. Argument of `fit`.
        shuffle: bool. Argument of `fit`.
    """
    size = None if model is None else fixed_batch_size(model)
    if isinstance(data, keras.utils.PyDataset):
        batches = _from_py_dataset(data, samples, steps_per_epoch)
        return Inputs(_of_size(batches, size), data)
    if _are_arrays(data):
        _check_lengths(data)
        count = int(_size(data) * (1.0 - validation_split))
        if not batch_size:
            batch_size = math.ceil(count / steps_per_epoch) if steps_per_epoch else 32
        exactly = batch_size == size
        rows, parts = _choose_rows(data, count, batch_size, samples, exactly)
        with announced("Reading training samples"):
            return Inputs(_from_arrays(data, rows, parts, shuffle), data)
    reader = _Reader(model, samples, steps_per_epoch)
    if isinstance(data, Iterator):
        data = reader.read_and_put_back(data)
    elif hasattr(data, "get_numpy_iterator"):  # one of Keras's data adapters
        reader.read(data.get_numpy_iterator())
    elif isinstance(data, Iterable) and not isinstance(data, (list, tuple, dict, str)):
        reader.read(data)
    return Inputs(_of_size(reader.batches(), size), data, reader.steps)


def some_batches(batches: Sequence[Any], samples: int) -> list[Any]:
    """Returns evenly spaced batches of about `samples` samples in all.

    Args:
        batches: list of model inputs.
        samples: int. Number of samples that suffices.
    """
    if not len(batches):
        return []
    count = min(len(batches), -(-samples // max(1, _size(batches[0]))))
    return [batches[i * len(batches) // count] for i in range(count)]


def check_has_samples(name: str, data: Any, batches: list[Any] | None = None) -> None:
    """Checks that there is at least one sample to train or validate on.

    Args:
        name: str. Name of the argument.
        data: the argument, as `keras.Model.fit` takes it.
        batches: those that `take_inputs` read; None if none were. Then only data that
            tell their number are checked.

    Raises:
        ValueError: if there is none.
    """
    if batches is not None:
        has_samples = any(_size(batch) for batch in batches)
    elif hasattr(data, "cardinality"):
        has_samples = int(data.cardinality()) != 0
    elif _are_arrays(data):
        has_samples = _size(data) > 0
    else:
        has_samples = True
    if not has_samples:
        raise ValueError(
            f"At least one sample is expected in `{name}`: arrays, batches that can be "
            f"read, or a dataset. Received: an object of type {type(data).__name__} "
            "without any."
        )


def fixed_batch_size(model: keras.Model) -> int | None:
    """Returns the batch size of a model's inputs, or None for any.

    Most layers compute on other sizes as well, and Keras does not check it.
    """
    sizes = {tensor.shape[0] for tensor in model.inputs} - {None}
    return sizes.pop() if sizes else None


def _check_lengths(arrays):
    lengths = [int(leaf.shape[0]) for leaf in _leaves(arrays)]
    if len(set(lengths)) > 1:
        raise ValueError(
            "The same number of samples in each array of `x` is expected. Received: "
            f"arrays of {lengths} samples."
        )


def _choose_rows(arrays, count, batch_size, samples, exactly):
    """Evenly spaced rows, and the number of batches that they make."""
    if count == 0:
        return np.array([], int), 0
    fitting = MAX_BYTES // max(1, _bytes(_rows(arrays, np.array([0]))))
    chosen = min(count, max(batch_size, min(samples, fitting)))
    parts = max(1, chosen // batch_size)
    if exactly:
        chosen = min(chosen, parts * batch_size)
    return np.linspace(0, count - 1, chosen).astype(int), parts


def _from_arrays(arrays, rows, parts, shuffle):
    if not parts:
        return []
    values = _rows(arrays, rows)
    if shuffle:
        return [_sliced(values, slice(i, None, parts)) for i in range(parts)]
    splits = np.array_split(np.arange(len(rows)), parts)
    return [_sliced(values, slice(part[0], part[-1] + 1)) for part in splits]


def _from_py_dataset(data, samples, steps_per_epoch):
    if data.num_batches == 0:
        return []
    batches = [_host(_inputs_of(data[0]))]
    kept = _batches_to_keep(batches, samples)
    total = data.num_batches or steps_per_epoch or kept
    chosen = np.linspace(0, total - 1, min(total, kept)).astype(int)
    with progress_bar("Reading training samples", len(chosen) - 1) as bar:
        for index in bar.over(chosen[1:]):
            batches.append(_host(_inputs_of(data[int(index)])))
    return batches


class _Reader:
    """Reader of batches in order, which keeps evenly spaced ones.

    The length is not known beforehand. So it keeps every batch at first, and drops
    every second one whenever it has twice the number that it needs.

    Attributes:
        steps: int or None. Number of batches, if it came to their end.
    """

    def __init__(
        self, model: keras.Model | None, samples: int, steps_per_epoch: int | None
    ) -> None:
        # PerReplica values of a distributed dataset belong to a strategy.
        self._strategy = getattr(model, "distribute_strategy", None)
        self._samples = samples
        self._most = steps_per_epoch or math.inf
        self._kept: list[list[Any]] = []
        self._needed = 1
        self.steps: int | None = None

    def read(self, batches: Iterable[Any], max_bytes: float = math.inf) -> list[Any]:
        """Reads batches, at most the number that the class of data allows.

        Returns:
            The batches that were read, if `max_bytes` is finite.
        """
        read: list[Any] = []
        count, stride, size = 0, 1, 0
        limit: float = 1
        with progress_bar("Reading training samples", None) as bar:
            for batch in batches:
                if count % stride == 0:
                    self._kept.append(self._replicas(_inputs_of(batch)))
                count += 1
                bar.add(1)
                if count == 1:
                    self._needed = _batches_to_keep(self._kept[0], self._samples)
                    limit = min(READ_FACTOR * self._needed, self._most)
                    limit = max(limit, self._needed)
                if max_bytes < math.inf:
                    read.append(batch)
                    size += _bytes(batch)
                if len(self._kept) >= 2 * self._needed:
                    self._kept, stride = self._kept[::2], 2 * stride
                if count >= limit or (count >= self._needed and size >= max_bytes):
                    break
            else:
                self.steps = count
        return read

    def read_and_put_back(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Reads batches of a generator, and returns one that yields them again."""
        read = collections.deque(self.read(map(_copied, batches), MAX_BYTES))

        def whole():
            while read:  # and frees them one by one
                yield read.popleft()
            yield from batches

        return whole()

    def batches(self) -> list[Any]:
        """Returns the evenly spaced batches: those of all replicas."""
        kept = self._kept
        chosen = np.linspace(0, len(kept) - 1, min(len(kept), self._needed))
        return [x for index in chosen.astype(int) for x in kept[index]]

    def _replicas(self, inputs):
        if self._strategy is None:
            return [_host(inputs)]
        values = [
            self._strategy.experimental_local_results(leaf)
            for leaf in keras.tree.flatten(inputs)
        ]
        replicas = [
            _host(keras.tree.pack_sequence_as(inputs, leaves))
            for leaves in zip(*values, strict=True)
        ]
        # The last batch may leave a replica without samples.
        return [x for x in replicas if _size(x)]


def _batches_to_keep(replicas, samples):
    """Batches that suffice, all of the size of one, given as one or as replicas."""
    by_samples = math.ceil(samples / max(1, sum(_size(x) for x in replicas)))
    by_bytes = MAX_BYTES // max(1, sum(_bytes(x) for x in replicas))
    return max(1, min(by_samples, by_bytes))


def _of_size(batches, size):
    """The batches of a size, if the first of them has it; else all."""
    if not batches or _size(batches[0]) != size:
        return batches
    return [batch for batch in batches if _size(batch) == size]


def _are_arrays(data):
    leaves = _leaves(data)
    return bool(leaves) and all(len(getattr(x, "shape", ())) > 0 for x in leaves)


def _leaves(data):
    return [leaf for leaf in keras.tree.flatten(data) if leaf is not None]


def _inputs_of(batch):
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def _size(batch):
    return int(_leaves(batch)[0].shape[0])


def _bytes(batch):
    flat = [getattr(leaf, "flat_values", leaf) for leaf in _leaves(batch)]
    return sum(getattr(x, "nbytes", 4 * math.prod(x.shape)) for x in flat)


def _host(batch):
    return _copied(_rows(batch, slice(0, _size(batch))))


def _copied(arrays):
    """Copies of the NumPy arrays, which their source may fill again."""
    return keras.tree.map_structure(
        lambda array: array.copy() if isinstance(array, np.ndarray) else array, arrays
    )


def _rows(arrays, rows):
    return keras.tree.map_structure(lambda array: _rows_of(array, rows), arrays)


def _sliced(arrays, part):
    return keras.tree.map_structure(
        lambda array: None if array is None else array[part], arrays
    )


def _rows_of(array, rows):
    if array is None:
        return None
    if isinstance(array, np.ndarray):
        return array[rows]
    if keras_private.is_tensor(array):
        return keras_private.rows_of_tensor(array, rows)
    # Read lazily: only the rows that are asked for.
    if not hasattr(array, "__getitem__"):
        return np.asarray(array)[rows]
    try:
        return np.asarray(array[rows])
    except (TypeError, IndexError, NotImplementedError):
        return np.stack([np.asarray(array[int(row)]) for row in rows])
