"""Encoded tensor: the two byte arrays that a DECODE operator reads."""

import dataclasses

import numpy as np

# Bytes of the header of an ancillary tensor.
HEADER_BYTES = 16
# Versions of the header and of each encoding.
VERSION = 1

LOOKUP, HUFFMAN, PRUNING = 0, 1, 2
NAMES = {LOOKUP: "look-up", HUFFMAN: "Huffman", PRUNING: "pruning"}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Encoded int8 tensor.

    The ancillary bytes begin with a header of 16 bytes. Byte 0 is the kind of encoding,
    byte 1 the version of the header, and byte 4 that of the encoding. Bytes 5 and 6
    are parameters of the encoding. All other bytes of the header are 0. Tables follow.

    Attributes:
        data: bytes. Codes of the elements.
        ancillary: bytes. Header and tables.
        bits: int. Bits of an index, or of the longest code.
    """

    data: bytes
    ancillary: bytes
    bits: int

    @property
    def kind(self) -> int:
        """`LOOKUP`, `HUFFMAN` or `PRUNING`."""
        return self.ancillary[0]

    @property
    def bytes(self) -> int:
        """Bytes of data and ancillary together."""
        return len(self.data) + len(self.ancillary)


def header(kind: int, first: int = 0, second: int = 0) -> bytes:
    """Returns the header of an ancillary tensor.

    Args:
        kind: `LOOKUP`, `HUFFMAN` or `PRUNING`.
        first, second: parameters of the encoding, bytes 5 and 6.
    """
    used = bytes([kind, VERSION, 0, 0, VERSION, first, second])
    return used.ljust(HEADER_BYTES, b"\0")


def to_channels(codes: np.ndarray, axis: int) -> np.ndarray:
    """Returns a tensor as (channels, elements of a channel)."""
    return np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)


def from_channels(
    channels: np.ndarray, shape: tuple[int, ...], axis: int
) -> np.ndarray:
    """Returns the tensor of a shape that `to_channels` was called with."""
    others = [size for place, size in enumerate(shape) if place != axis]
    return np.moveaxis(channels.reshape(shape[axis], *others), 0, axis)


def to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Returns the bits of unsigned integers, most significant first, as 0 and 1."""
    places: np.ndarray = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    return ((values.reshape(-1, 1) >> places) & 1).astype(np.uint8).ravel()


def from_bits(data: bytes, bits: int, count: int) -> np.ndarray:
    """Returns the first `count` integers that `to_bits` made `data` of, int64."""
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * count)
    return flat.reshape(count, bits) @ (1 << np.arange(bits - 1, -1, -1))
