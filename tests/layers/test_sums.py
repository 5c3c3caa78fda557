"""Sums of two tensors on levels, in integers."""

import keras
import numpy as np
import pytest

from tfcompress.layers import IntegerAdd


@pytest.mark.parametrize("steps", [(0.3, 0.1, 0.35), (0.02, 1.7, 0.9), (1.0, 1.0, 2.0)])
def test_integer_add_rounds_the_sum_of_levels(steps, tmp_path):
    inputs = [keras.Input((500,)), keras.Input((500,))]
    layer = IntegerAdd()
    model = keras.Model(inputs, layer(inputs))
    layer.set_steps(steps)
    a, b = np.random.default_rng(0).integers(-128, 256, (2, 40, 500))
    steps = np.float32(steps)
    found = model([np.float32(a) * steps[0], np.float32(b) * steps[1]])
    exact = (a * float(steps[0]) + b * float(steps[1])) / float(steps[2])
    levels = np.rint(found / steps[2])
    # Factors have 21 bits.
    assert np.abs(levels - exact).max() < 0.5 + 2e-3
    is_tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-9
    np.testing.assert_array_equal(levels[is_tie], np.ceil(exact[is_tie]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded([np.float32(a) * steps[0], np.float32(b) * steps[1]])
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(
    "steps, takes",
    [((0.1, 0.1, 0.1), True), ((3e-5, 2e-5, 0.1), False), ((26.0, 1.0, 0.1), False)],
)
def test_integer_add_takes_the_ratios_of_steps_that_litert_takes(steps, takes):
    assert IntegerAdd.takes(steps) == takes
