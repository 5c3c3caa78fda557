"""Table of the forms that the installed runtime reads, and of those that it refuses.

It fails when another version of the runtime reads more, less or otherwise. Then look at
`tfcompress.micro.encodings` and at the reasons in docs/decisions.md again.
"""

import dataclasses

import numpy as np
import pytest

from tests.micro.decoding import decoded_by_runtime
from tests.micro.encodings.test_encodings import drawn
from tfcompress.micro.encodings import huffman, lookup, pruning
from tfcompress.micro.encodings.encoded import Encoded
from tfcompress.micro.runtime import MicroError


def changed(encoded, place, value):
    """The same with another byte in the header."""
    ancillary = bytearray(encoded.ancillary)
    ancillary[place] = value
    return dataclasses.replace(encoded, ancillary=bytes(ancillary))


def one_long_table(codes):
    """Huffman codes whose table has entries of 32 bits: value, length, found."""
    short = huffman.encode(codes)
    entries = np.frombuffer(short.ancillary, "<u2", offset=16).astype("<u4")
    value, count, found = entries & 0xFF, (entries >> 11) & 15, entries >> 15
    long = value | (count << 27) | (found << 31)
    header = changed(short, 5, short.ancillary[5] | 1).ancillary[:16]
    return Encoded(short.data, header + long.astype("<u4").tobytes(), short.bits)


CODES = drawn((8, 5, 3), 4)
FORMS = {
    "look-up, shared table": (lookup.shared(CODES, 0), 0, "read"),
    "look-up, table per first axis": (lookup.separate(CODES, 0), 0, "read"),
    "look-up, table per last axis": (lookup.separate(CODES, 2), 2, "read"),
    "look-up, one scale": (lookup.shared(CODES.reshape(1, -1), 0), None, "read"),
    "look-up, middle axis": (lookup.shared(CODES, 1), 1, "refused"),
    # The runtime steps to another table for each scale, without an error.
    "look-up, one table with a stride": (
        changed(lookup.shared(CODES, 0), 6, 4), 0, "other codes",
    ),
    "Huffman, entries of 16 bits": (huffman.encode(CODES), 0, "read"),
    "Huffman, entries of 32 bits": (one_long_table(CODES), 0, "read"),
    "Huffman, middle axis": (huffman.encode(CODES), 1, "read"),
    "pruning": (pruning.encode(CODES), 0, "read"),
    "pruning, middle axis": (pruning.encode(CODES), 1, "refused"),
    "another header": (changed(pruning.encode(CODES), 1, 2), 0, "refused"),
    "another pruning": (changed(pruning.encode(CODES), 4, 2), 0, "refused"),
    "another Huffman": (changed(huffman.encode(CODES), 4, 2), 0, "refused"),
    "another look-up": (changed(lookup.shared(CODES, 0), 4, 2), 0, "refused"),
    "kind 3": (changed(pruning.encode(CODES), 0, 3), 0, "refused"),
    "kind of the user": (changed(pruning.encode(CODES), 0, 127), 0, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_runtime_reads_the_forms_of_the_table_alone(runtime, form):
    encoded, axis, expected = FORMS[form]
    try:
        (codes,) = decoded_by_runtime(runtime, [encoded], [CODES.shape], [axis])
    except MicroError as error:
        assert expected == "refused", error.messages
        assert "ended its process" not in str(error)
    else:
        found = "read" if np.array_equal(codes, CODES) else "other codes"
        assert found == expected
