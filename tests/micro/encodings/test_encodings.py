"""Each encoding against the runtime and against its decoder in NumPy, bit by bit."""

import numpy as np
import pytest

from tests.micro.decoding import decoded_by_runtime
from tfcompress.micro.encodings import choice, huffman, lookup, pruning
from tfcompress.micro.encodings.encoded import header

# Shapes with the axis of their channels. Sizes are no multiples of a word.
SHAPES = [
    ((7, 3, 3, 5), 0),
    ((1, 3, 3, 11), 3),
    ((13, 37), 0),
    ((1, 9), 0),
    ((5, 1), 0),
    ((1, 1, 1, 1), 0),
    ((3, 64), 0),
]


def drawn(shape, values, seed=0):
    """int8 array of a shape with random numbers of `values` different values."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.arange(-128, 128))[:values]
    return rng.choice(levels, shape).astype(np.int8)


def fibonacci(longest):
    """int8 array whose longest Huffman code has so many bits."""
    counts = [1, 1]
    while len(counts) <= longest:
        counts.append(counts[-1] + counts[-2])
    codes = np.repeat(np.arange(longest + 1, dtype=np.int8), counts)
    return np.random.default_rng(0).permutation(codes)


def checked(runtime, encoded, codes, axis):
    shapes = [x.shape for x in codes]
    found = decoded_by_runtime(runtime, encoded, shapes, [axis] * len(codes))
    for x, y in zip(codes, found, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_lookup_tables_of_every_width_are_decoded_by_the_runtime(runtime, shape, axis):
    codes = [drawn(shape, values) for values in (1, 2, 3, 4, 7, 16, 31, 64, 128)]
    encoded = [lookup.encode(x, axis) for x in codes]
    for x, y in zip(codes, encoded, strict=True):
        found = lookup.decode(y.data, y.ancillary, shape, axis)
        np.testing.assert_array_equal(found, x)
    checked(runtime, encoded, codes, axis)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("shape, axis", [((6, 257), 0), ((1, 9, 9, 5), 3)])
def test_lookup_tables_of_each_channel_have_every_width(runtime, bits, shape, axis):
    # Channels of different values, all of which need a table of their own.
    columns = np.moveaxis(np.zeros(shape, np.int8), axis, 0)
    for seed, column in enumerate(columns):
        size = min(2**bits, column.size)
        column[...] = drawn(column.shape, size, seed)
        column.flat[:size] = np.random.default_rng(seed).permutation(256)[:size] - 128
    codes = np.moveaxis(columns, 0, axis)
    separate = lookup.separate(codes, axis)
    if separate is not None:
        assert separate.ancillary[6] > 0
        checked(runtime, [separate], [codes], axis)
        found = lookup.decode(separate.data, separate.ancillary, shape, axis)
        np.testing.assert_array_equal(found, codes)


def test_lookup_table_that_channels_share_is_read_with_a_stride_of_zero(runtime):
    codes = drawn((40, 33), 3)
    encoded = lookup.encode(codes, 0)
    assert encoded.ancillary[5:7] == bytes([2, 0])
    assert encoded.bytes == -(-40 * 33 * 2 // 8) + 16 + 3
    checked(runtime, [encoded], [codes], 0)


def test_lookup_refuses_channels_of_more_than_128_values():
    codes = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
    assert lookup.encode(codes, 0) is None


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_huffman_codes_are_decoded_by_the_runtime(runtime, shape, axis):
    codes = [drawn(shape, values) for values in (1, 2, 3, 9, 100, 256)]
    encoded = [huffman.encode(x) for x in codes]
    for x, y in zip(codes, encoded, strict=True):
        np.testing.assert_array_equal(huffman.decode(y.data, y.ancillary, shape), x)
    checked(runtime, encoded, codes, axis)


@pytest.mark.parametrize("longest", (7, 14, 15, 16, 21))
def test_huffman_codes_of_many_bits_are_decoded_by_the_runtime(runtime, longest):
    codes = fibonacci(longest)
    encoded = huffman.encode(codes)
    assert encoded.bits == longest
    found = huffman.decode(encoded.data, encoded.ancillary, codes.shape)
    np.testing.assert_array_equal(found, codes)
    checked(runtime, [encoded], [codes], None)


def test_huffman_codes_of_15_bits_are_decoded_from_one_table(runtime, monkeypatch):
    codes = fibonacci(15)
    monkeypatch.setattr(huffman, "_width", lambda rests: (0, -max(map(_bits, rests))))
    encoded = huffman.encode(codes)
    assert len(encoded.ancillary) == 16 + 2 * 2**15
    checked(runtime, [encoded], [codes], None)


def _bits(rest):
    return len(rest[0])


def test_huffman_tables_of_several_levels_are_smaller_than_one():
    codes = fibonacci(15)
    # One bit a look-up: a value or a table, at each of 15 levels.
    assert len(huffman.encode(codes).ancillary) == 16 + 2 * 2 * 15


def test_huffman_codes_are_as_short_as_huffmans():
    codes = np.array([0] * 80 + [1] * 10 + [-1] * 10, np.int8)
    encoded = huffman.encode(codes)
    bits = 80 * 1 + 20 * 2
    assert len(encoded.data) == -(-(bits + huffman.MOST_LOOKED_UP) // 32) * 4
    assert len(encoded.ancillary) == 16 + 2 * 4


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_pruning_masks_are_decoded_by_the_runtime(runtime, shape, axis):
    rng = np.random.default_rng(0)
    codes = [drawn(shape, 256) * (rng.random(shape) < x) for x in (0, 0.2, 1)]
    encoded = [pruning.encode(x) for x in codes]
    for x, y in zip(codes, encoded, strict=True):
        np.testing.assert_array_equal(pruning.decode(y.data, y.ancillary, shape), x)
        assert y.bytes == -(-x.size // 8) + 16 + np.count_nonzero(x)
    checked(runtime, encoded, codes, axis)


@pytest.mark.parametrize("values", (1, 2, 3, 9, 100, 256))
@pytest.mark.parametrize("shape", [(7, 3, 3, 5), (640, 13)])
def test_sizes_by_counts_are_those_of_the_encodings(values, shape):
    codes = drawn(shape, values)
    counts = np.bincount(codes.ravel().view(np.uint8), minlength=256)
    assert huffman.size(counts) == huffman.encode(codes).bytes
    assert pruning.size(counts) == pruning.encode(codes).bytes
    shared = lookup.shared(codes, 0)
    assert lookup.size(counts) == (shared and shared.bytes)
    best = choice.encode(codes, 0, shape[0])
    most = best.bytes + choice.DECODE_BYTES if best else codes.size
    assert most <= choice.encoded_bytes(codes) <= codes.size


@pytest.mark.parametrize("kind", (3, 127))
def test_unknown_encodings_are_refused(kind):
    with pytest.raises(ValueError, match=f"encodings.*Received: {kind}"):
        choice.decode(b"", header(kind), (1, 1), 0, 1)
