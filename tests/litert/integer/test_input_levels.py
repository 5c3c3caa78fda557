"""Levels of quantized inputs in int8."""

import numpy as np
import pytest

from tests.litert.packed_models import quantize_activation
from tfcompress.litert.integer.input_levels import levels_of, limits_of


def on_grids(values, grids):
    """Codes of values that pass int8 grids in order, without the zero point."""
    for scale, zero_point in grids:
        codes = np.clip(np.round(values / scale) + zero_point, -128, 127) - zero_point
        values = codes * scale
    return codes


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_round_once_although_values_pass_a_finer_grid(bits, signed):
    """Values far beyond int8's steps, except ties."""
    layer = quantize_activation(bits, signed)
    values = np.random.default_rng(0).uniform(-40, 40, 100_000).astype("float32")
    values = np.concatenate([values, values / 100])
    expected = np.array(layer(values)) / 0.1
    levels = on_grids(values, levels_of(layer).grids())
    ties = np.abs(np.abs(values / 0.1 % 1) - 0.5) < 1e-3
    np.testing.assert_array_equal(levels[~ties], np.round(expected)[~ties])


@pytest.mark.parametrize("high", [0.25, 0.6, 2.9])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_limits_of_a_tensor_with_another_reader_keep_rounding_once(bits, signed, high):
    """The limits cover the samples, and a level is an odd number of steps."""
    layer = quantize_activation(bits, signed)
    levels = levels_of(layer)
    low = -high if signed else 0.0
    least, most = limits_of([levels, None], low, high)
    assert least <= low < high <= most
    step = (most - least) / 255
    grids = [(step, round(-128 - least / step)), *levels.grids()]
    values = np.random.default_rng(0).uniform(low, high, 100_000).astype("float32")
    expected = np.array(layer(values)) / 0.1
    ties = np.abs(np.abs(values / 0.1 % 1) - 0.5) < 1e-3
    received = on_grids(values, grids)
    np.testing.assert_array_equal(received[~ties], np.round(expected)[~ties])


def test_limits_of_follows_the_readers():
    fine, coarse = (
        levels_of(quantize_activation(4)),
        levels_of(quantize_activation(4, scale=0.1001)),
    )
    assert limits_of([], -1.0, 2.0) == limits_of([None], -1.0, 2.0) == (-1.0, 2.0)
    assert limits_of([fine, fine], 0.0, 9.0) == pytest.approx((0.0, 1.5))
    # Nearly the same levels: both readers share the steps of the first.
    assert limits_of([fine, coarse], 0.0, 9.0) == pytest.approx((0.0, 1.5))
    # No step as fine as a level reaches that far.
    assert limits_of([fine, None], 0.0, 26.0) == (0.0, 26.0)


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_levels_of_refuses_bits_that_int8_cannot_represent(bits):
    with pytest.raises(ValueError, match=f"2, 3, 4 or 8 bits .*{bits} bits in 'x'"):
        levels_of(quantize_activation(bits, name="x"))
