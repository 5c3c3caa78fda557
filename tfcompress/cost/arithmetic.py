"""What a kernel costs, as plain arithmetic.

Only `*`, `+` and `/` on the arguments: they may be Python numbers or tensors of
any Keras backend, so a scheme can differentiate through the same definitions
that the reports print.
"""

import lzma
import math

import numpy as np

FLOAT_BITS = 32


def kernel_macs(kernel_shape, positions):
    """Multiply-accumulates of one call: every weight, once per output position.

    This is k^2 * C_in/groups * C_out * H_out * W_out for a convolution, and the
    same rule gives depthwise and dense layers.

    Args:
        kernel_shape: the kernel's axes as Keras stores them, such as
            (3, 3, C_in // groups, C_out), (3, 3, C, multiplier) or (C_in, C_out).
        positions: sizes of the output's axes other than batch and channels, such
            as (H_out, W_out); empty for a dense layer on vectors.
    """
    return math.prod(kernel_shape) * math.prod(positions)


def bops(macs, weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS):
    """Bit operations: MACs * b_w * b_a, float counting as 32 x 32.

    Liu et al., "Single-path Bit Sharing" (TPAMI 2023).
    """
    return macs * weight_bits * activation_bits


def value_bits(nonzeros, bits):
    """Bits of the non-zero weights' values: b * ||W||_0, positions not included.

    The count of Yang et al. (CVPR 2020), kernels only, with `index_bits` for low-bit
    ones. It is no file size.
    """
    return nonzeros * bits


def index_bits(codes):
    """Bits that tell the different non-zero codes apart: 1 for ternary ones.

    b bits are at most 2^b different values; zero is free (CVPR 2020).
    """
    different = np.count_nonzero(np.unique(codes))
    return max(1, math.ceil(math.log2(max(1, different))))


def entropy_bits(codes):
    """Shannon bound in bits: the codes' empirical entropy * their number.

    Args:
        codes: integer array of any shape.

    Returns:
        A float: no coder that treats the codes as independent draws does better.
    """
    return entropy_bits_of_counts(np.unique(codes, return_counts=True)[1])


def entropy_bits_of_counts(counts):
    """`entropy_bits` from how often each code occurs: array (K,), zero or more."""
    counts = np.asarray(counts, np.float64)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def xz_bytes(content):
    """Bytes of a file's content after xz: what a download or an app bundle holds."""
    return len(lzma.compress(content, preset=9))
