"""Comparison of a layer with its parts on example inputs."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.types import Tensor

# Sizes of the axes that a call leaves open, batch and others.
_BATCH, _SIZE = 2, 8
# Characters of the messages of other errors.
_MESSAGE = 160
# Largest difference of outputs, relative to the largest output.
_ROUNDING = 1e-5


class NoPartsError(Exception):
    """Reason why a layer cannot be replaced by its parts."""


def brief(error: Exception) -> str:
    """Returns the class of an error and the beginning of its message."""
    return f"{type(error).__name__}: {message(error)[:_MESSAGE]}"


def message(error: Exception) -> str:
    """Returns the message of an error, without what Keras adds around it."""
    text = re.sub(
        r"\x1b\[\d+m|Exception encountered when calling \S+"
        r"|Arguments received by \S+\.call\(\):.*",
        "",
        str(error),
        flags=re.DOTALL,
    )
    return " ".join(text.split())


def examples(tensors: Sequence[keras.KerasTensor]) -> list[Tensor]:
    """Returns values for symbolic tensors, the same in each call.

    They are normal numbers, 0 and 1, or True in the first half of the last axis.
    """
    rng = np.random.default_rng(0)
    return [_example(tensor, rng) for tensor in tensors]


def _example(tensor, rng):
    batch, *others = tensor.shape or (1,)
    sizes = (batch or _BATCH, *(size or _SIZE for size in others))[: len(tensor.shape)]
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype == "bool":
        last = sizes[-1] if sizes else 1
        values = np.broadcast_to(np.arange(last) < (last + 1) // 2, sizes)
    elif "int" in dtype:
        values = rng.integers(0, 2, sizes)
    else:
        values = rng.normal(size=sizes)
    return ops.cast(values, dtype)


def same_outputs(layer: Callable[[], Any], parts: Callable[[], Any]) -> None:
    """Compares the outputs of a layer with those of its parts.

    Args:
        layer, parts: functions that return structures of tensors.

    Raises:
        NoPartsError: if they differ, or one raises an error.
    """
    try:
        outputs = [keras.tree.flatten(function()) for function in (layer, parts)]
    except Exception as error:
        raise NoPartsError(
            f"cannot be called on example inputs ({brief(error)})"
        ) from error
    for pair in zip(*outputs, strict=True):
        one, other = (ops.convert_to_numpy(ops.cast(x, "float32")) for x in pair)
        largest = max(np.abs(one).max(initial=0), 1)
        if one.shape != other.shape or not (
            np.abs(one - other).max(initial=0) <= _ROUNDING * largest
        ):
            raise NoPartsError("computes something else than its parts do")
