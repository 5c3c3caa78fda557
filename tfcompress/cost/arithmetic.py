"""Costs of a kernel as plain arithmetic.

MACs, BOPs and value bits are products of their arguments. These may be Python numbers
or tensors of any Keras backend, so that a scheme can differentiate through the
definitions of the reports.
"""

import lzma
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.progress_bar import announced
from tfcompress.types import ArrayLike

FLOAT_BITS = 32


def kernel_macs(kernel_shape: Sequence[Any], positions: Sequence[Any]) -> Any:
    """Returns the multiply-accumulates of one call: weights times output positions.

    This is k^2 * C_in/groups * C_out * H_out * W_out for a convolution. The same rule
    holds for depthwise and dense layers.

    Args:
        kernel_shape: numbers or tensors. The kernel's axes as Keras stores them, such
            as (3, 3, C_in // groups, C_out), (3, 3, C, multiplier) or (C_in, C_out).
        positions: numbers or tensors. Sizes of the output's axes other than batch and
            channels, such as (H_out, W_out); empty for a dense layer on vectors.
    """
    return math.prod(kernel_shape) * math.prod(positions)


def bops(
    macs: Any, weight_bits: Any = FLOAT_BITS, activation_bits: Any = FLOAT_BITS
) -> Any:
    """Returns bit operations: MACs * b_w * b_a, where float has 32 bits.

    Liu et al., "Single-path Bit Sharing" (TPAMI 2023). All are numbers or tensors.
    """
    return macs * weight_bits * activation_bits


def value_bits(nonzeros: Any, bits: Any) -> Any:
    """Returns the bits of the non-zero weights' values, b * ||W||_0, without positions.

    This is the count of Yang et al. (CVPR 2020), for kernels alone, with `index_bits`
    for low-bit kernels. It is no file size.
    """
    return nonzeros * bits


def index_bits(codes: ArrayLike) -> int:
    """Returns the bits of an index of the distinct non-zero codes; 1 for ternary codes.

    b bits index up to 2^b values; zero is not counted (Yang et al., CVPR 2020).
    """
    different = int(np.count_nonzero(np.unique(codes)))
    return max(1, math.ceil(math.log2(max(1, different))))


def entropy_bits(codes: ArrayLike) -> float:
    """Returns the codes' empirical entropy times their number, in bits.

    It is the lower bound of every coder that treats codes as independent draws.

    Args:
        codes: integer array of any shape.
    """
    return entropy_bits_of_counts(np.unique(codes, return_counts=True)[1])


def entropy_bits_of_counts(counts: ArrayLike) -> float:
    """Returns `entropy_bits` from the number of each code, an array (K,), 0 or more."""
    counts = np.asarray(counts, np.float64)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def xz_bytes(content: bytes) -> int:
    """Returns the bytes of a file after xz, as in a download or an app bundle."""
    with announced("Size after xz"):
        return len(lzma.compress(content, preset=9))


def fast_bytes(content: bytes) -> int:
    """Returns the bytes after a compression as of xz, ten times as fast and larger."""
    return len(lzma.compress(content, preset=1))
