"""Packing of integer codes of 2, 4 or 8 bits into bytes, as LiteRT packs them."""

import numpy as np

from tfcompress.types import ArrayLike

CONTAINERS = (2, 4, 8)


def container_bits(bits: int) -> int:
    """Returns the smallest container, 2, 4 or 8 bits, that holds codes of `bits` bits.

    Raises:
        ValueError: if `bits` is not in 2..8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(
            f"A packed code has 2 to 8 bits. Received: bits={bits}. "
            "Use a quantizer with a bit-width in that range."
        )
    return next(size for size in CONTAINERS if bits <= size)


def code_limit(bits: int) -> int:
    """Returns the largest code of the symmetric grid: 1 at 2 bits, 7 at 4, 127 at 8."""
    return 2 ** (bits - 1) - 1


def packed_bytes(size: int, bits: int) -> int:
    """Returns the bytes of `size` codes in containers of `bits` bits."""
    return -(-size * bits // 8)


def pack(codes: ArrayLike, bits: int) -> np.ndarray:
    """Packs signed codes into bytes; the first code takes the lowest bits.

    Args:
        codes: integer array of any shape, read in C order. Each code fits a signed
            integer of `bits` bits.
        bits: int. Bits of a container, 2, 4 or 8.

    Returns:
        uint8 array of `ceil(codes.size * bits / 8)` bytes. The unused high bits of
        the last byte are zero.

    Raises:
        ValueError: if a code is outside the range of the container.
    """
    codes = np.asarray(codes).ravel()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if codes.size and (codes.min() < low or codes.max() > high):
        raise ValueError(
            f"Codes of {bits} bits must lie in [{low}, {high}]. Received: "
            f"codes in [{codes.min()}, {codes.max()}]."
        )
    per_byte = 8 // bits
    fields: np.ndarray = np.zeros(packed_bytes(codes.size, bits) * per_byte, np.uint8)
    fields[: codes.size] = codes.astype(np.int8).view(np.uint8) & (2**bits - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(fields.reshape(-1, per_byte) << shifts, axis=1)


def unpack(packed: ArrayLike, bits: int, size: int) -> np.ndarray:
    """Inverts `pack`.

    Args:
        packed: uint8 array, as `pack` returns it.
        bits: int. Bits of a container, 2, 4 or 8.
        size: int. Number of codes.

    Returns:
        int8 array (size,).
    """
    shifts: np.ndarray = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (np.asarray(packed, np.uint8)[:, None] >> shifts) & (2**bits - 1)
    # Shifting the sign bit of the field to that of the byte, and back, extends it.
    up = np.uint8(8 - bits)
    signed = (fields.astype(np.uint8) << up).view(np.int8) >> up.astype(np.int8)
    return signed.ravel()[:size]
