"""Look-up tables: an index of 1 to 7 bits per element.

Data: the indices of all elements in the order of the tensor, each with its most
significant bit first. They are packed without gaps, also between channels. The last
byte is filled with zeros.

Ancillary: byte 5 has the bits of an index, and byte 6 the stride, the number of int8
values from the table of a channel to that of the next one. The tables follow the
header, channel by channel. With a stride of 0 all channels read the same table.

The runtime counts channels by the scales of the decoded tensor, whatever the tables
are. The axis of channels has to be the first or the last one.
"""

import numpy as np

from tfcompress.micro.encodings.encoded import (
    HEADER_BYTES,
    LOOKUP,
    Encoded,
    from_bits,
    from_channels,
    header,
    to_bits,
    to_channels,
)

MOST_BITS = 7


def encode(codes: np.ndarray, axis: int) -> Encoded | None:
    """Encodes a tensor by one table for all channels or by one per channel.

    The form with fewer bytes is chosen.

    Args:
        codes: int8 array.
        axis: int. Axis of channels, the first or the last one.

    Returns:
        `Encoded`, or None if a channel has more than 128 values.
    """
    options = shared(codes, axis), separate(codes, axis)
    return min(filter(None, options), key=lambda found: found.bytes, default=None)


def shared(codes: np.ndarray, axis: int) -> Encoded | None:
    """Encodes a tensor by one table, or returns None if it has too many values."""
    return _encode(codes, axis, [np.unique(codes)] * codes.shape[axis], stride=0)


def separate(codes: np.ndarray, axis: int) -> Encoded | None:
    """Encodes a tensor by one table per channel, or returns None as `shared` does."""
    tables = [np.unique(channel) for channel in to_channels(codes, axis)]
    return _encode(codes, axis, tables, stride=max(map(len, tables)))


def size(counts: np.ndarray) -> int | None:
    """Returns the bytes of `shared` by the counts of a tensor's values.

    It is None if there are too many values.
    """
    values = int(np.count_nonzero(counts))
    bits = max(1, (values - 1).bit_length())
    if bits > MOST_BITS:
        return None
    return -(-int(counts.sum()) * bits // 8) + HEADER_BYTES + values


def _encode(codes, axis, tables, stride):
    longest = max(map(len, tables))
    bits = max(1, int(longest - 1).bit_length())
    if bits > MOST_BITS:
        return None
    pairs = zip(tables, to_channels(codes, axis), strict=True)
    indices = np.stack([np.searchsorted(*pair) for pair in pairs])
    table = tables[0] if stride == 0 else np.zeros((len(tables), stride), np.int8)
    if stride:
        for row, values in zip(table, tables, strict=True):
            row[: len(values)] = values
    ordered = from_channels(indices.astype(np.uint8), codes.shape, axis)
    data = np.packbits(to_bits(ordered, bits)).tobytes()
    return Encoded(data, header(LOOKUP, bits, stride) + table.tobytes(), bits)


def decode(
    data: bytes, ancillary: bytes, shape: tuple[int, ...], axis: int
) -> np.ndarray:
    """Decodes a tensor, as the runtime does.

    Args:
        data, ancillary: bytes of the two tensors.
        shape: tuple of ints. Shape of the decoded tensor.
        axis: int. Axis of channels.

    Returns:
        int8 array.
    """
    bits, stride = ancillary[5:7]
    table = np.frombuffer(ancillary, np.int8, offset=HEADER_BYTES)
    indices = from_bits(data, bits, int(np.prod(shape))).reshape(shape)
    first: np.ndarray = stride * np.arange(shape[axis]).reshape(-1, 1)
    return from_channels(table[first + to_channels(indices, axis)], shape, axis)
