"""Samples that the user gives for a check or for ranges, or random ones."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.graph.signature import input_names
from tfcompress.litert.runtime import split

# Largest batch, in samples and in values of its inputs: activations are in memory.
BATCH_SIZE = 128
BATCH_VALUES = 2**21
# Number of random samples where none are given, and their size where it is free.
RANDOM_SAMPLES = 8
FREE_SIZE = 32


class Samples:
    """Iterable over checked batches of inputs, for Keras and LiteRT.

    Numbers are converted to the types of the inputs: values of float inputs are
    rounded, as Keras does, and those of integer and bool inputs are kept.

    Attributes:
        given: bool. Whether the user gave the samples; they are random otherwise.

    Args:
        model: the Functional model that takes them.
        data: samples, as `check` takes `verify`.
        argument: name of the user's argument, for error messages.
    """

    def __init__(self, model: keras.Model, data: Any, argument: str = "verify") -> None:
        self.given = data is not None
        self._argument = argument
        self._inputs = keras.tree.flatten(model.input)
        self._names = input_names(model)
        # A model built with a batch size takes no other.
        self._batch_size = self._inputs[0].shape[0] or self._fitting_batch()
        self._data = data if self.given else self._random()

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yields lists of one array per input.

        Raises:
            ValueError: if an array has another shape, values that its input cannot
                hold, or values that are not finite.
        """
        for batch in split(self._data, self._names, self._batch_size):
            received = [array.shape for array in batch]
            expected = [tuple(x.shape) for x in self._inputs]
            if not all(map(_fits, received, expected)):
                raise ValueError(
                    f"`{self._argument}` should hold batches of shapes {expected} "
                    f"(None for any size), one per input. Received: {received}."
                    + self._hint(received, expected)
                )
            yield [
                self._converted(array, x.dtype, name)
                for array, x, name in zip(batch, self._inputs, self._names, strict=True)
            ]

    def check(self) -> None:
        """Checks all samples before long work, of a dataset those of the first batch.

        Raises:
            ValueError: see `__iter__`.
        """
        for _ in self:
            if self._is_dataset():
                return

    def check_given(self, calibrated: int) -> None:
        """Checks that random samples have not set the ranges of activations.

        Args:
            calibrated: int. Number of ranges that samples set.

        Raises:
            ValueError: if there are such ranges, and the user gave no samples.
        """
        if calibrated and not self.given:
            raise ValueError(
                f"`{self._argument}` is expected: training samples for the ranges of "
                "int8 activations, some of which the model has not learned. Received: "
                "None. Pass samples, or train with `activation_bits=8`."
            )

    def batches(self) -> int | None:
        """Returns the number of batches, or None if a dataset does not tell it."""
        data = self._data
        if hasattr(data, "cardinality"):
            return max(0, int(data.cardinality())) or None
        if isinstance(data, dict):
            data = list(data.values())
        first = data[0] if isinstance(data, (list, tuple)) else data
        return math.ceil(len(first) / self._batch_size)

    def smallest_shapes(self) -> list[tuple[int, ...]]:
        """Returns the shape of each input for the smallest batch the model takes."""
        return [
            (x.shape[0] or 1, *array.shape[1:])
            for x, array in zip(self._inputs, next(iter(self)), strict=True)
        ]

    def _hint(self, received, expected):
        """Hint for arrays that make no whole number of batches."""
        pairs = zip(received, expected, strict=True)
        if self._is_dataset() or not all(_fits(a[1:], b[1:]) for a, b in pairs):
            return ""
        return (
            f" Pass a multiple of {self._batch_size} samples, or make `inputs` of any "
            "number of them by keras.Input(shape), and export keras.Model(inputs, "
            "model(inputs))."
        )

    def _is_dataset(self):
        return hasattr(self._data, "as_numpy_iterator")

    def _converted(self, array: np.ndarray, dtype: str, name: str) -> np.ndarray:
        """Returns values in the type of an input, which has to hold them."""
        if dtype == "string":
            return array
        wanted = np.dtype(dtype)
        is_number = array.dtype.kind in "biuf" or array.dtype == wanted
        with np.errstate(over="ignore", invalid="ignore"):
            converted = array.astype(wanted) if is_number else array
        if wanted.kind in "biu" and is_number and (converted != array).any():
            is_number = False  # fractions, or integers that are too large
        if not is_number:
            raise ValueError(
                f"`{self._argument}` should hold values of type {dtype} for the input "
                f"'{name}'. Received: values of type {array.dtype} that it cannot hold."
            )
        finite = np.isfinite(converted)
        if not finite.all():
            bad = array[~finite].ravel()
            raise ValueError(
                f"`{self._argument}` should hold finite values of type {dtype} for the "
                f"input '{name}'. Received: {bad.size} others, such as {bad[0]}."
            )
        return converted

    def _fitting_batch(self) -> int:
        sizes = [[size or FREE_SIZE for size in x.shape[1:]] for x in self._inputs]
        return min(BATCH_SIZE, BATCH_VALUES // sum(map(math.prod, sizes)) or 1)

    def _random(self) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        arrays = []
        for x in self._inputs:
            batch, *sizes = x.shape
            shape = [batch or RANDOM_SAMPLES, *(size or FREE_SIZE for size in sizes)]
            if "float" in x.dtype:
                arrays.append(rng.standard_normal(shape).astype(x.dtype))
            elif x.dtype == "string":
                arrays.append(np.full(shape, b"", object))
            else:  # 0 and 1 are valid wherever integers mean something
                arrays.append(rng.integers(0, 2, shape).astype(x.dtype))
        return arrays


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(shape, expected, strict=True)
    )
