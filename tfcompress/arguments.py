"""Checks of arguments that are numbers, and texts of errors and warnings."""

import difflib
import inspect
import numbers
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Texts of a list that a message has.
_LISTED = 5
_PACKAGE = str(pathlib.Path(__file__).parent / "_")[:-1]


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number; text and booleans are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(
    name: str, value: Any, expected: str, is_valid: Callable[[Any], bool]
) -> None:
    """Checks an argument that is a number.

    Args:
        name: str. Name of the argument.
        value: the argument.
        expected: str. What it is, with its bounds: the predicate of a sentence.
        is_valid: function that returns whether a number is within the bounds.

    Raises:
        ValueError: if it is no number, or is out of its bounds.
    """
    if not is_number(value) or not is_valid(value):
        raise ValueError(f"`{name}` is {expected}. Received: {name}={value!r}.")


def listed(texts: Sequence[str]) -> str:
    """Returns the first texts of a list for a message, and the number of the others."""
    more = len(texts) - _LISTED
    return ", ".join(texts[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def most_similar(name: str, names: Iterable[str]) -> str:
    """Returns the names that are most similar to one that was not found."""
    found = difflib.get_close_matches(name, list(names), n=_LISTED, cutoff=0.0)
    return ", ".join(found)


def warn_caller(message: str) -> None:
    """Warns at the line of the user's code from which the library was called.

    Args:
        message: str. Text of the `UserWarning`.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
