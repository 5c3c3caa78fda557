"""Choice of the encoding of a kernel."""

import functools

import numpy as np

from tfcompress.micro.encodings import huffman, lookup, pruning
from tfcompress.micro.encodings.encoded import (
    HUFFMAN,
    LOOKUP,
    NAMES,
    PRUNING,
    Encoded,
)

# Bytes of the file for one more encoded tensor: three tensors, two buffers with their
# alignment, and an operator.
DECODE_BYTES = 96


def encode(
    codes: np.ndarray,
    axis: int,
    channels: int,
    readers: int = 1,
    kinds: tuple[int, ...] = tuple(NAMES),
) -> Encoded | None:
    """Encodes a kernel in the way that takes the fewest bytes of the file.

    Args:
        codes: int8 array.
        axis: int. Axis of channels.
        channels: int. Number of scales.
        readers: int. Number of operators that read it, each of which has a DECODE.
        kinds: tuple of ints. Encodings to choose from.

    Returns:
        `Encoded`, or None if INT8 takes as few.
    """
    return _encode(codes.tobytes(), codes.shape, axis, channels, readers, kinds)


# An arena is fitted in several attempts, with many equal parts.
@functools.lru_cache(maxsize=256)
def _encode(data, shape, axis, channels, readers, kinds):
    codes = np.frombuffer(data, np.int8).reshape(shape)
    options = [
        huffman.encode(codes) if HUFFMAN in kinds else None,
        pruning.encode(codes) if PRUNING in kinds else None,
        _looked_up(codes, axis, channels) if LOOKUP in kinds else None,
    ]
    found = [x for x in options if x and x.bytes + readers * DECODE_BYTES < codes.size]
    return min(found, key=lambda x: x.bytes, default=None)


def _looked_up(codes, axis, channels):
    if channels == 1:
        return lookup.encode(codes.reshape(1, -1), 0)
    return lookup.encode(codes, axis) if axis in (0, codes.ndim - 1) else None


def decode(
    data: bytes, ancillary: bytes, shape: tuple[int, ...], axis: int, channels: int
) -> np.ndarray:
    """Decodes a kernel, as the runtime does.

    Args:
        data, ancillary: bytes of the two tensors that DECODE reads.
        shape: tuple of ints. Shape of the decoded tensor.
        axis, channels: as in `encode`.

    Returns:
        int8 array of the shape.

    Raises:
        ValueError: if the encoding is unknown.
    """
    kind = ancillary[0]
    if kind == HUFFMAN:
        return huffman.decode(data, ancillary, shape)
    if kind == PRUNING:
        return pruning.decode(data, ancillary, shape)
    if kind == LOOKUP and channels == 1:
        flat = lookup.decode(data, ancillary, (1, int(np.prod(shape))), 0)
        return flat.reshape(shape)
    if kind == LOOKUP:
        return lookup.decode(data, ancillary, shape, axis)
    raise ValueError(f"One of the encodings {NAMES} is expected. Received: {kind}.")


def encoded_bytes(codes: np.ndarray) -> int:
    """Returns about the bytes of the file that a kernel takes as `encode` encodes it.

    Tables of single channels are not tried, and nothing is encoded.

    Args:
        codes: int8 array.
    """
    counts = np.bincount(codes.ravel().view(np.uint8), minlength=256)
    options = [huffman.size(counts), pruning.size(counts), lookup.size(counts)]
    best = min(x for x in options if x is not None)
    return min(best + DECODE_BYTES, codes.size)
