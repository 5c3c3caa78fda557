"""Batch normalization folded into integer codes."""

import keras
import numpy as np

from tfcompress.layers.batch_norm import fold


def test_channel_without_a_scale_in_float32_gets_codes_of_zero():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 3))
    norm.gamma.assign([1.0, 1e-37, 0.0])
    norm.moving_variance.assign([1.0, 1e20, 1.0])
    norm.beta.assign([0.1, 0.2, 0.3])
    codes, scale = np.full((4, 3), 5, np.int8), np.full((1, 3), 0.01, np.float32)
    codes, scale, bias = fold(codes, scale, np.zeros(()), norm)
    assert (scale > 0).all() and scale.dtype == np.float32
    np.testing.assert_array_equal(codes, [[5, 0, 0]] * 4)
    np.testing.assert_allclose(bias, [0.1, 0.2, 0.3], rtol=1e-6)
