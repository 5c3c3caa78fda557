import numpy as np
import pytest

from tfcompress.quantizers import packing


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1001])
def test_unpack_inverts_pack(bits, size):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = np.random.default_rng(0).integers(low, high, size).astype(np.int8)
    packed = packing.pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packing.packed_bytes(size, bits) == -(-size * bits // 8)
    restored = packing.unpack(packed, bits, size)
    assert restored.dtype == np.int8
    np.testing.assert_array_equal(restored, codes)


def test_pack_puts_the_first_code_into_the_lowest_bits():
    assert packing.pack([1, -1, 0, 1], 2).tolist() == [0b01_00_11_01]
    assert packing.pack([1, -1, 7], 4).tolist() == [0b1111_0001, 0b0000_0111]
    assert packing.pack([-127, 1], 8).tolist() == [129, 1]


def test_pack_refuses_codes_outside_the_container():
    with pytest.raises(ValueError, match=r"\[-2, 1\]. Received: codes in \[0, 2\]"):
        packing.pack([0, 2], 2)


@pytest.mark.parametrize(
    "bits, container", [(2, 2), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8)]
)
def test_container_bits_are_the_smallest_that_fit(bits, container):
    assert packing.container_bits(bits) == container


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_container_bits_refuses_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="2 to 8 bits"):
        packing.container_bits(bits)
