import keras
import numpy as np
import pytest

from tfcompress.cost import bops, entropy_bits, kernel_macs, value_bits
from tfcompress.cost.arithmetic import index_bits


def test_kernel_macs_of_convolution_depthwise_and_dense_kernels():
    assert kernel_macs((3, 3, 16, 32), (8, 8)) == 3 * 3 * 16 * 32 * 8 * 8
    assert kernel_macs((3, 3, 16, 1), (8, 8)) == 3 * 3 * 16 * 8 * 8
    assert kernel_macs((64, 10), ()) == 64 * 10


def test_bops_are_macs_times_bits_and_1024_per_float_mac():
    assert bops(10) == 10 * 32 * 32
    assert bops(10, 2, 8) == 10 * 2 * 8


def test_value_bits_are_nonzeros_times_bits():
    assert value_bits(7, 4) == 7 * 4


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 1), ([-1, 0, 1], 1), ([1, 2, 3, 0], 2), (range(-7, 8), 4), (range(5), 2)],
)
def test_index_bits_count_distinct_non_zero_codes(codes, expected):
    assert index_bits(np.array(codes)) == expected


def test_bops_and_macs_take_tensors():
    channels = keras.ops.convert_to_tensor(4.5)
    bits = keras.ops.convert_to_tensor(2.5)
    cost = bops(kernel_macs((3, 3, channels, 8), (4, 4)), bits, 32)
    expected = 3 * 3 * 4.5 * 8 * 4 * 4 * 2.5 * 32
    assert float(keras.ops.convert_to_numpy(cost)) == expected


@pytest.mark.parametrize(
    "codes, expected",
    [
        ([0, 0, 0, 0], 0),
        ([-1, 1, -1, 1], 4 * 1),
        ([-1, 0, 1, 2], 4 * 2),
        ([0, 0, 0, 1], 3 * np.log2(4 / 3) + 1 * np.log2(4)),
    ],
)
def test_entropy_bits_are_entropy_times_number_of_codes(codes, expected):
    assert entropy_bits(np.array(codes, np.int8)) == pytest.approx(expected)


def test_entropy_bits_of_the_papers_ternary_resnet18():
    """From the paper's table: 11.7 M ternary weights, 88 % zeros, 948 kB."""
    codes = np.zeros(11_700_000, np.int8)
    codes[:702_000], codes[702_000:1_404_000] = 1, -1
    assert entropy_bits(codes) / 8 == pytest.approx(948e3, rel=0.005)
