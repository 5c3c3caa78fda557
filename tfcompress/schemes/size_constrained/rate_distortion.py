"""Rate and distortion of a kernel, whatever its zeros and bits."""

from typing import NamedTuple

import numpy as np

from tfcompress.quantizers.clustering import SortedNonZeros, counts_and_distortions

# Of the weights there are, how many are kept where codebooks are fitted; between them
# rates and distortions are interpolated, and below the last.
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 0.004, 0.0008)
# One number of weights to the next.
_RATIO = 0.97
# So many weights tell how they are distributed.
_SAMPLES = 2**17
# What is left of a kernel's energy, at least, and what there is of it.
_LEAST_LEFT, _TINY = 1e-9, 1e-30


class OperatingPoints(NamedTuple):
    """Choices of zeros and bits for one kernel, in no order.

    Attributes:
        kept: integer array (P,), how many of the largest weights are not zero.
        bits: integer array (P,), of their codebook.
        costs: float64 array (P,), nominal bits of the kernel.
        distortions: float64 array (P,), sum of squared errors over the kernel.
        losses: float64 array (P,), what that does to the layer, see `layer_loss`.
    """

    kept: np.ndarray
    bits: np.ndarray
    costs: np.ndarray
    distortions: np.ndarray
    losses: np.ndarray


def layer_loss(distortions, kernel):
    """What squared errors do to a layer: -E ln(1 - D / E), E = ||W||^2.

    Small errors D lose what they are, as in the paper. But what is left of a kernel has
    to carry the signal, and a normalization behind it scales that up, with its errors:
    a layer that is nearly emptied loses without bound, however small its weights are.

    Args:
        distortions: float array of any shape, sums of squared errors.
        kernel: float array of any shape.

    Returns:
        float64 array like `distortions`, >= 0.
    """
    energy = max(float(np.square(kernel, dtype=np.float64).sum()), _TINY)
    left = 1.0 - np.asarray(distortions, np.float64) / energy
    return -energy * np.log(np.clip(left, _LEAST_LEFT, 1.0))


def operating_points(kernel, floor, budget, bit_widths):
    """What a kernel takes and loses with fewer weights and fewer bits.

    Zeros stay zero. The largest of the other weights are kept, in numbers from all
    down to the floor that are 3 % apart; each number with each bit-width. How the kept
    ones are quantized follows from fits at a few of the numbers.

    Args:
        kernel: float array of any shape.
        floor: how many weights stay in any case.
        budget: a `SizeBudget`; where it is not sparse, all weights are kept.
        bit_widths: to choose from.

    Returns:
        `OperatingPoints`.
    """
    kernel = np.asarray(kernel, np.float32).ravel()
    values = kernel[kernel != 0]
    kept = _numbers(floor, len(values)) if budget.sparse else np.array([kernel.size])
    sample = values
    if len(values) > _SAMPLES:  # drawn: every n-th would be always the same channels
        sample = np.random.default_rng(0).choice(values, _SAMPLES, replace=False)
    scale = len(values) / len(sample) if len(sample) else 1.0
    largest_first = np.sort(np.abs(sample))[::-1]
    energy = np.cumsum(np.square(largest_first, dtype=np.float64))
    energy = scale * np.insert(energy, 0, 0.0)
    dropped = energy[-1] - np.interp(kept / scale, np.arange(len(energy)), energy)

    fitted = _fitted_numbers(kept)
    rates = np.empty((len(bit_widths), len(fitted)))
    errors = np.empty_like(rates)
    for j, count in enumerate(fitted):
        part = max(1, round(count / scale))
        smallest = largest_first[part - 1] if part < len(sample) else 0.0
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


def _numbers(floor, most):
    """From the floor to the most, ascending; the floor alone if that is less."""
    steps = np.arange(np.log(floor / most) / np.log(_RATIO)) if most > floor else []
    return np.unique([floor, *np.round(most * _RATIO ** np.array(steps)).astype(int)])


def _fitted_numbers(kept):
    """Those of ascending numbers that are nearest to `_SHARES` of the last one."""
    shares = np.array([share for share in _SHARES if share * kept[-1] >= kept[0]])
    return np.unique([kept[0], *kept[np.searchsorted(kept, shares * kept[-1])]])
