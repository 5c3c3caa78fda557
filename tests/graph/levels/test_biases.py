"""Scales with which the sums of int8 operators fit int32."""

import numpy as np
import pytest

from tfcompress.graph.levels.biases import with_room_for_biases

STEP = 0.02
WEIGHTS = (3, 3, 64)
AXES = (0, 1, 2)


def kernel(scales):
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (*WEIGHTS, len(scales))).astype(np.int8)
    return codes, np.reshape(np.float32(scales), (1, 1, 1, -1))


def largest_sums(codes, scale, bias):
    """Largest magnitudes of an operator's sums, float array (channels,)."""
    products = 255 * np.abs(codes.astype(float)).sum(axis=AXES)
    return products + np.abs(bias) / (STEP * scale.reshape(-1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_sums_fit_int32_and_results_stay(size):
    scales = size * np.array([1e-2, 1e-5, 1e-6, 1e-8, 1e-9, 1e-10, 1e-20])
    codes, scale = kernel(scales)
    bias = size * np.array([0.5, -0.5, 0.5, -0.5, 0.5, 5.0, 5e8])
    assert (largest_sums(codes, scale, bias) < 2**31).sum() == 3
    found, changed = with_room_for_biases(codes, scale, bias, STEP, AXES)
    assert (largest_sums(found, changed, bias) < 2**31).all()
    np.testing.assert_array_equal(found[..., :3], codes[..., :3])
    np.testing.assert_array_equal(changed[..., :3], scale[..., :3])
    assert not found[..., 3:].any()
    products = 255 * STEP * np.abs(codes * scale.astype(float)).sum(axis=AXES)
    least = 1.5e-5 * np.prod(WEIGHTS) * np.abs(bias)
    assert (products[3:] < least[3:]).all()
    assert found.dtype == np.int8 and changed.dtype == np.float32


def test_a_second_time_changes_nothing():
    codes, scale = kernel([1e-2, 1e-7, 1e-9, 1e-12])
    codes[..., 0] = 0
    bias = np.array([0.5, 0.3, -1e9, 0.1])
    once = with_room_for_biases(codes, scale, bias, STEP, AXES)
    unit = STEP * once[1].reshape(-1)
    rounded = (np.round(bias / unit) * unit).astype(np.float32)
    twice = with_room_for_biases(*once, rounded, STEP, AXES)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a, b)


def test_kernel_of_zeros_has_room_too():
    codes, scale = kernel([1.0, 1.0])
    bias = np.array([1e12, 0.0])
    _, changed = with_room_for_biases(0 * codes, scale, bias, STEP, AXES)
    assert (largest_sums(0 * codes, changed, bias) < 2**31).all()
