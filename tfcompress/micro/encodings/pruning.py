"""Pruning: a bit mask, and the values that are not zero.

Data: one bit per element in the order of the tensor, most significant bit of a byte
first: 1 for a value of its own, 0 for the zero point, which is 0 in kernels. The last
byte is filled with zeros.

Ancillary: the values follow the header, one int8 each, in the order of the tensor.
"""

import numpy as np

from tfcompress.micro.encodings.encoded import (
    HEADER_BYTES,
    PRUNING,
    Encoded,
    header,
)


def encode(codes: np.ndarray) -> Encoded:
    """Encodes an int8 tensor with a zero point of 0."""
    kept = codes != 0
    data = np.packbits(kept.ravel()).tobytes()
    return Encoded(data, header(PRUNING) + codes[kept].tobytes(), 8)


def size(counts: np.ndarray) -> int:
    """Returns the bytes of a tensor by the counts of its values modulo 256."""
    total = int(counts.sum())
    return -(-total // 8) + HEADER_BYTES + total - int(counts[0])


def decode(data: bytes, ancillary: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes an int8 tensor of a shape, as the runtime does."""
    count = int(np.prod(shape))
    kept: np.ndarray = np.unpackbits(np.frombuffer(data, np.uint8), count=count) > 0
    codes: np.ndarray = np.zeros(count, np.int8)
    values = np.frombuffer(ancillary, np.int8, offset=HEADER_BYTES)
    codes[kept] = values[: kept.sum()]
    return codes.reshape(shape)
