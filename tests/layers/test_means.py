"""Means of levels, rounded as int8 operators do."""

import keras
import numpy as np
import pytest

from tfcompress.layers import RoundMeans


@pytest.mark.parametrize("count", [2, 4, 9, 64, 196])
@pytest.mark.parametrize("signed", [True, False])
def test_round_means_rounds_halves_of_int8_codes_away_from_zero(
    signed, count, tmp_path
):
    step, low = np.float32(0.037), -128 if signed else 0
    levels = np.random.default_rng(0).integers(low, low + 256, (400, count))
    codes = levels if signed else levels - 128
    sums = codes.sum(axis=1)
    expected = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    inputs = keras.Input((count, 1))
    layer = RoundMeans(signed)
    mean = keras.layers.GlobalAveragePooling1D()(inputs)
    model = keras.Model(inputs, layer(mean))
    layer.set_steps(np.array([step, step]))
    x = np.float32(levels)[..., None] * step
    found = np.rint(np.array(model(x))[:, 0] / step) - (0 if signed else 128)
    np.testing.assert_array_equal(found, expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
