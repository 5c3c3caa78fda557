"""Sizes in bytes, as users write them."""

import contextlib
import re

from tfcompress.arguments import is_number

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}


def parse_bytes(size: float | str, name: str) -> float:
    """Returns the bytes of a size, a finite number of at least 1.

    Args:
        size: number of bytes, or text with a unit, such as "100 kB" or "1.5 MiB".
        name: str. Name of the argument, for the error.

    Raises:
        ValueError: if the size is neither.
    """
    value = None
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", size.lower())
        if match and match[2] in _UNITS:
            value = float(match[1]) * _UNITS[match[2]]
    elif is_number(size):
        with contextlib.suppress(OverflowError):
            value = float(size)
    if value is None or not 1 <= value < float("inf"):
        raise ValueError(
            f"`{name}` is a number of bytes, at least 1, or text with one of the units "
            f"B, kB, MB, KiB and MiB, as in '100 kB'. Received: {name}={size!r}."
        )
    return value
