"""Sizes in bytes, as users write them."""

from decimal import Decimal
from fractions import Fraction

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.cost.parse_bytes import parse_bytes

# More than a float holds, or less than a byte.
HUGE = [10**400, -(10**400), Fraction(10**400), "1e400 kB", f"{'9' * 400} kB"]
TINY = [Fraction(1, 10**400), f"0.{'0' * 400}1 kB", 0.5, "0.9 B"]


def shortened(size):
    return repr(size)[:12]


@pytest.mark.parametrize("name", ["size", "arena"])
@pytest.mark.parametrize(
    "size", [*HUGE, *TINY, Decimal(5), "", "100", None, True], ids=shortened
)
def test_parse_bytes_refuses_what_is_no_size_with_name_and_units(name, size):
    with pytest.raises(ValueError, match=f"`{name}` is.*KiB.*Received: {name}="):
        parse_bytes(size, name)


@pytest.mark.parametrize("size", [5000, np.float32(5000), Fraction(5000), "5.000 kB"])
def test_parse_bytes_returns_a_float(size):
    found = parse_bytes(size, "arena")
    assert isinstance(found, float) and found == 5000


@pytest.mark.parametrize("size", HUGE, ids=shortened)
def test_arguments_that_are_sizes_refuse_huge_ones_first(size, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="`size` .*Received: size="):
        tfc.compress(model, tfc.SizeConstrained(size=size))
    with pytest.raises(ValueError, match="`arena` is.*Received: arena="):
        tfc.export(
            model,
            tmp_path / "model.tflite",
            target="micro",
            representative_data=np.zeros((1, 4), np.float32),
            arena=size,
        )
