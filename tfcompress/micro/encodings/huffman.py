"""Huffman codes of int8 values, with tables of several levels.

Data: the codes of all elements in the order of the tensor, most significant bit first.
The runtime reads whole words of 4 bytes, and looks further ahead than a code is long.
The data are filled with zeros as far as it can look, to whole words.

Ancillary: the high half of byte 5 has the bits of the first look-up, less 1. Its low
half is 0 for tables of 16-bit entries, little-endian, which follow the header. The
runtime looks the next bits of the data up in the first table. The entry that it finds
is one of:

- bit 15 set: a value, in the low 8 bits. Bits 11 to 14 are the number of bits that the
  code takes of this look-up. The rest are read again.
- bit 15 clear: another table. Bits 11 to 14 are the bits of its look-up, less 1. Bits 0
  to 10 are the distance of its first entry from this one, in entries.
"""

import collections
import functools
import heapq
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from tfcompress.micro.encodings.encoded import (
    HEADER_BYTES,
    HUFFMAN,
    Encoded,
    header,
)

# Bits 11 to 14 of an entry, and so the bits of a look-up, are no more than that.
MOST_LOOKED_UP = 15
_FOUND = 1 << 15
_COUNT_SHIFT = 11
_FARTHEST = (1 << _COUNT_SHIFT) - 1

# Rests of codes below a table: `((bits as text, value), ...)`.
Rests: TypeAlias = tuple[tuple[str, int], ...]


def encode(codes: np.ndarray) -> Encoded:
    """Encodes an int8 tensor with the shortest codes, and the smallest tables."""
    values = codes.ravel()
    table = code_table(code_lengths(collections.Counter(values.tolist())))
    width, entries = _tables(tuple((code, value) for value, code in table.items()))
    longest = max(map(len, table.values()))
    lengths: np.ndarray = np.zeros(256, np.int64)
    words: np.ndarray = np.zeros(256, np.uint64)
    for value, code in table.items():
        lengths[value], words[value] = len(code), int(code, 2)
    data = _packed(words[values], lengths[values], longest)
    ancillary = header(HUFFMAN, (width - 1) << 4) + np.array(entries, "<u2").tobytes()
    return Encoded(data, ancillary, longest)


def size(counts: np.ndarray) -> int:
    """Returns the bytes of a tensor by the counts of its values."""
    found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    lengths = code_lengths(found)
    rests = tuple((code, value) for value, code in code_table(lengths).items())
    bits = sum(found[value] * length for value, length in lengths.items())
    return 4 * _words(bits) + HEADER_BYTES + 2 * _width(rests)[0]


def _words(bits):
    """Words of 4 bytes for the data, and for the zeros that the runtime may look at."""
    return -(-(bits + MOST_LOOKED_UP) // 32)


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Returns the bits of each value's code: at least one.

    Args:
        counts: how often each value occurs.
    """
    heap: list[Any] = [
        (count, value, (value,)) for value, count in sorted(counts.items())
    ]
    if len(heap) == 1:
        return {heap[0][1]: 1}
    heapq.heapify(heap)
    lengths = dict.fromkeys(counts, 0)
    serial = 256  # larger than any value: ties join values before groups
    while len(heap) > 1:
        (count, _, group), (other_count, _, other) = heapq.heappop(heap), heap[0]
        for value in group + other:
            lengths[value] += 1
        heapq.heapreplace(heap, (count + other_count, serial, group + other))
        serial += 1
    return lengths


def code_table(lengths: Mapping[int, int]) -> dict[int, str]:
    """Returns the canonical code of each value, as text of 0 and 1."""
    table, code, last = {}, 0, 0
    for value, length in sorted(lengths.items(), key=lambda item: (item[1], item[0])):
        code <<= length - last
        table[value] = f"{code:0{length}b}"
        code, last = code + 1, length
    return table


@functools.lru_cache(maxsize=4096)
def _width(rests: Rests) -> tuple[int, int]:
    """Returns `(entries, bits of the first look-up)` of the smallest tables.

    Of several look-ups with equally many entries the widest is chosen: it takes fewer
    steps.
    """
    longest = max(len(rest) for rest, _ in rests)
    return min(
        (
            (2**width + sum(_width(below)[0] for below in _below(rests, width)), -width)
            for width in range(1, min(longest, MOST_LOOKED_UP) + 1)
        ),
    )


def _below(rests: Rests, width: int) -> list[Rests]:
    """Returns the rests of codes longer than `width`, grouped by their first bits."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for rest, value in rests:
        if len(rest) > width:
            groups.setdefault(rest[:width], []).append((rest[width:], value))
    return [tuple(groups[prefix]) for prefix in sorted(groups)]


def _tables(rests: Rests) -> tuple[int, list[int]]:
    """Returns the bits of the first look-up, and the entries of all tables."""
    width = -_width(rests)[1]
    entries = [0] * 2**width
    for rest, value in rests:
        if len(rest) <= width:
            span = 2 ** (width - len(rest))
            first = int(rest, 2) * span
            entry = _FOUND | (len(rest) << _COUNT_SHIFT) | (value & 0xFF)
            entries[first : first + span] = [entry] * span
    prefixes = sorted({rest[:width] for rest, _ in rests if len(rest) > width})
    for prefix, below in zip(prefixes, _below(rests, width), strict=True):
        next_width, next_entries = _tables(below)
        place = int(prefix, 2)
        distance = len(entries) - place
        if distance > _FARTHEST:  # 256 values need fewer than 512 entries
            raise AssertionError(f"A table is {distance} entries away.")
        entries[place] = ((next_width - 1) << _COUNT_SHIFT) | distance
        entries += next_entries
    return width, entries


def _packed(words, lengths, longest):
    """Packs codes of given lengths."""
    first = np.cumsum(lengths) - lengths
    used = int(lengths.sum())
    bits = np.zeros(32 * _words(used), np.uint8)
    for place in range(longest):
        reached = lengths > place
        shift = (lengths[reached] - 1 - place).astype(np.uint64)
        bits[first[reached] + place] = (words[reached] >> shift) & np.uint64(1)
    return np.packbits(bits).tobytes()


def decode(data: bytes, ancillary: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes an int8 tensor of a shape, as the runtime does."""
    table = np.frombuffer(ancillary, "<u2", offset=HEADER_BYTES).tolist()
    first_width = (ancillary[5] >> 4) + 1
    words = [*np.frombuffer(data, ">u4").tolist(), 0]

    def look_up(start, width):
        word, offset = divmod(start, 32)
        pair = (words[word] << 32) | words[word + 1]
        return (pair >> (64 - offset - width)) & ((1 << width) - 1)

    codes: np.ndarray = np.zeros(int(np.prod(shape)), np.uint8)
    start = 0
    for element in range(codes.size):
        width = first_width
        index = look_up(start, width)
        while not table[index] & _FOUND:
            start += width
            width = ((table[index] >> _COUNT_SHIFT) & 15) + 1
            index += (table[index] & _FARTHEST) + look_up(start, width)
        codes[element] = table[index] & 0xFF
        start += (table[index] >> _COUNT_SHIFT) & 15
    return codes.view(np.int8).reshape(shape)
