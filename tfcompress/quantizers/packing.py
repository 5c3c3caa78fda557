"""Integer codes of 2, 4 or 8 bits, packed into bytes as LiteRT packs them."""

import numpy as np

CONTAINERS = (2, 4, 8)


def container_bits(bits):
    """The smallest container (2, 4 or 8 bits) that holds codes of `bits` bits.

    Raises:
        ValueError: if `bits` is not in 2..8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(
            f"A packed code has 2 to 8 bits. Received: bits={bits}. "
            "Use a quantizer with a bit-width in that range."
        )
    return next(size for size in CONTAINERS if bits <= size)


def code_limit(bits):
    """The largest code of the symmetric grid: 1 at 2 bits, 7 at 4, 127 at 8."""
    return 2 ** (bits - 1) - 1


def packed_bytes(size, bits):
    """Bytes that `size` codes take in containers of `bits` bits."""
    return -(-size * bits // 8)


def pack(codes, bits):
    """Packs signed codes into bytes; the first code takes the lowest bits.

    Args:
        codes: integer array of any shape, read in C order; each code fits a
            signed integer of `bits` bits.
        bits: container size, 2, 4 or 8.

    Returns:
        1-D uint8 array of `ceil(codes.size * bits / 8)` bytes; the unused high
        bits of the last byte are zero.

    Raises:
        ValueError: if a code is outside the container's range.
    """
    codes = np.asarray(codes).ravel()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if codes.size and (codes.min() < low or codes.max() > high):
        raise ValueError(
            f"Codes of {bits} bits must lie in [{low}, {high}]. Received: "
            f"codes in [{codes.min()}, {codes.max()}]."
        )
    per_byte = 8 // bits
    fields = np.zeros(packed_bytes(codes.size, bits) * per_byte, np.uint8)
    fields[: codes.size] = codes.astype(np.int8).view(np.uint8) & (2**bits - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(fields.reshape(-1, per_byte) << shifts, axis=1)


def unpack(packed, bits, size):
    """Inverse of `pack`: the first `size` codes as a 1-D int8 array."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (np.asarray(packed, np.uint8)[:, None] >> shifts) & (2**bits - 1)
    # Move the field's sign bit to the byte's, then shift it back down.
    up = np.uint8(8 - bits)
    signed = (fields.astype(np.uint8) << up).view(np.int8) >> up.astype(np.int8)
    return signed.ravel()[:size]
