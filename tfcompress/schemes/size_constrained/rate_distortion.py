"""Rate and distortion of a kernel for each number of weights and bits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfcompress.quantizers.clustering import (
    SAMPLES,
    SortedNonZeros,
    counts_and_distortions,
)
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.types import ArrayLike

# Codebooks are fitted where these shares of the weights are kept. Rates and distortions
# are interpolated between them and down to the least number of weights.
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 0.004, 0.0008)
# Ratio of one number of weights to the next.
_RATIO = 0.97
# The smallest share of a kernel's energy that remains, and the smallest energy.
_MIN_REMAINING, _TINY = 1e-9, 1e-30


class OperatingPoints(NamedTuple):
    """Operating points of one kernel, in no order: numbers of weights and bits.

    Attributes:
        kept: int array (P,). Number of largest weights that are kept.
        bits: int array (P,). Bits of a code.
        costs: float64 array (P,). Nominal bits of the kernel.
        distortions: float64 array (P,). Sum of squared errors of the kernel.
        losses: float64 array (P,). Losses of the layer, see `layer_loss`.
    """

    kept: np.ndarray
    bits: np.ndarray
    costs: np.ndarray
    distortions: np.ndarray
    losses: np.ndarray


def layer_loss(distortions: ArrayLike, kernel: ArrayLike) -> np.ndarray:
    """Returns the loss of a layer by squared errors D: -E ln(1 - D / E), E = ||W||^2.

    For small errors it is D, as in the paper. The remaining energy of a kernel has to
    carry the signal, and a normalization after the layer scales it up, with its errors.
    So the loss of a layer that is nearly emptied grows without bound, however small its
    weights are.

    Args:
        distortions: float array of any shape. Sums of squared errors.
        kernel: float array of any shape.

    Returns:
        float64 array of the shape of `distortions`, >= 0.
    """
    energy = max(float(np.square(kernel, dtype=np.float64).sum()), _TINY)
    remaining = 1.0 - np.asarray(distortions, np.float64) / energy
    return -energy * np.log(np.clip(remaining, _MIN_REMAINING, 1.0))


def operating_points(
    kernel: ArrayLike,
    min_count: int,
    budget: SizeBudget,
    bit_widths: Sequence[int],
    samples: int = SAMPLES,
) -> OperatingPoints:
    """Returns rate and distortion of a kernel for fewer weights and fewer bits.

    Zeros stay zero. Of the other weights the largest are kept, from all down to the
    least number, 3 % apart; each number with each bit-width. Codebooks are fitted at a
    few of these numbers, and rates and distortions interpolated.

    Args:
        kernel: float array of any shape.
        min_count: int. Least number of weights that are kept.
        budget: `SizeBudget`. Where it is not sparse, all weights are kept.
        bit_widths: ints. Bits of a code to choose from.
        samples: int. Largest number of weights that codebooks are fitted to.
    """
    kernel = np.asarray(kernel, np.float32).ravel()
    weights = SortedNonZeros(kernel, samples)
    sample, scale = weights.values, weights.scale
    kept = np.array([kernel.size])
    if budget.sparse:
        kept = _kept_counts(min_count, round(scale * len(sample)))
    magnitudes = np.sort(np.abs(sample))[::-1]
    energy = np.cumsum(np.square(magnitudes, dtype=np.float64))
    energy = scale * np.insert(energy, 0, 0.0)
    dropped = energy[-1] - np.interp(kept / scale, np.arange(len(energy)), energy)

    fitted = _fitted_counts(kept)
    rates = np.empty((len(bit_widths), len(fitted)))
    errors = np.empty_like(rates)
    for j, count in enumerate(fitted):
        part = max(1, round(count / scale))
        smallest = magnitudes[part - 1] if part < len(sample) else 0.0
        largest = SortedNonZeros(sample[np.abs(sample) >= smallest])
        found = counts_and_distortions(largest, bit_widths, budget.codebook)
        for i, (counts, distortion) in enumerate(found):
            rate = budget.rate(scale * counts, kernel.size, bit_widths[i])
            rates[i, j] = rate / count
            errors[i, j] = scale * distortion / count

    costs, distortions = (
        np.array([np.interp(np.log(kept), np.log(fitted), row) for row in table]) * kept
        for table in (rates, errors)
    )
    return OperatingPoints(
        kept=np.tile(kept, len(bit_widths)),
        bits=np.repeat(bit_widths, len(kept)),
        costs=costs.ravel(),
        distortions=(distortions + dropped).ravel(),
        losses=layer_loss(distortions + dropped, kernel).ravel(),
    )


def _kept_counts(least, most):
    """Ascending counts from `least` to `most`; `least` alone if it is not smaller."""
    steps = np.arange(np.log(least / most) / np.log(_RATIO)) if most > least else []
    return np.unique([least, *np.round(most * _RATIO ** np.array(steps)).astype(int)])


def _fitted_counts(kept):
    """The ascending counts that are nearest to `_SHARES` of the last one."""
    shares = np.array([share for share in _SHARES if share * kept[-1] >= kept[0]])
    return np.unique([kept[0], *kept[np.searchsorted(kept, shares * kept[-1])]])
