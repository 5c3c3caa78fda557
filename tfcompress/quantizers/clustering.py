"""Codebooks for the non-zero weights of a tensor: k-means, and uniform with one step.

Pure NumPy. In one dimension every cell of a codebook is a contiguous range of the
sorted values. Binary search finds the ranges, prefix sums give their sums. A round of
k-means, or an attempt at a step, therefore costs O(2^bits log N).
"""

import functools
import heapq
from collections.abc import Iterable

import numpy as np

from tfcompress.quantizers.packing import code_limit
from tfcompress.types import ArrayLike

# Steps of the first scan of a line search, of each later one, and their number.
_STEPS, _FINE_STEPS, _SCANS = 256, 64, 3
# Steps of the single scan that compares bit-widths.
_FEW_STEPS = 128
# Codebooks are fitted to a sample of at most this many weights.
SAMPLES = 2**17
_KINDS = ("uniform", "kmeans")
# The smallest step: most devices treat numbers below float32's normal range as zero.
_TINY = np.finfo(np.float32).tiny


class SortedNonZeros:
    """The non-zero values of an array, sorted, with prefix sums.

    It takes 20 bytes per value. Sums start at zero and run outwards, so that a few
    huge weights do not reduce the precision of the many small ones.

    Args:
        x: float array of any shape; computed in float32.
        limit: int or None. Largest number of values. Of more, a random sample is
            taken, the same in every call.

    Attributes:
        values: float32 array (N,). Ascending, without zeros.
        scale: float, at least 1. Number of non-zero values of `x` for each of `values`.
        distinct: int. Number of different values.

    Raises:
        ValueError: if a value is not finite.
    """

    def __init__(self, x: ArrayLike, limit: int | None = None) -> None:
        x = np.asarray(x, np.float32).ravel()
        x = x[x != 0]
        if len(x) and not np.isfinite([x.min(), x.max()]).all():
            raise ValueError(
                "Only finite weights can be quantized. Received: weights from "
                f"{x.min()} to {x.max()}. Train with a lower learning rate."
            )
        self.scale = 1.0
        if limit is not None and len(x) > limit:
            # Random: every n-th value would be of the same channels.
            self.scale = len(x) / limit
            rng = np.random.default_rng(0)
            x = x[rng.choice(len(x), limit, replace=False, shuffle=False)]
        self.values = np.sort(x)
        changes = np.count_nonzero(self.values[1:] != self.values[:-1])
        self.distinct = min(len(self), changes + 1)
        first_positive = np.searchsorted(self.values, np.float32(0))
        self._sums = _prefix_sums(self.values, first_positive)
        self._squares = _prefix_sums(
            np.multiply(self.values, self.values, dtype=np.float64), first_positive
        )

    def __len__(self) -> int:
        return len(self.values)

    @functools.cached_property
    def magnitudes(self) -> "SortedNonZeros":
        """The absolute values, sorted."""
        return SortedNonZeros(np.abs(self.values))

    def mean_magnitude(self) -> float:
        """Returns the mean of |value|; there must be at least one value."""
        return (self._sums[0] + self._sums[-1]) / len(self)

    def bounds(self, cuts: np.ndarray) -> np.ndarray:
        """Divides the values into cells: cell k is values[bounds[k] : bounds[k + 1]].

        Args:
            cuts: float32 array (..., K - 1), ascending. A value equal to a cut belongs
                to the cell after it.

        Returns:
            Integer array (..., K + 1), from 0 to N.
        """
        inner = np.searchsorted(self.values, cuts)
        ends = [(0, 0)] * (inner.ndim - 1) + [(1, 1)]
        return np.pad(inner, ends, constant_values=(0, len(self)))

    def means(self, bounds: np.ndarray, empty: ArrayLike) -> np.ndarray:
        """Returns each cell's mean, float64 (..., K); `empty` if it has no value."""
        counts = np.diff(bounds)
        sums = np.diff(self._sums[bounds])
        return np.where(counts > 0, sums / np.maximum(counts, 1), empty)

    def distortion(self, bounds: np.ndarray, centroids: ArrayLike) -> np.ndarray:
        """Returns the squared error of replacing cells by centroids, float64 (...)."""
        centroids = np.asarray(centroids, np.float64)
        errors = (
            np.diff(self._squares[bounds])
            - 2 * centroids * np.diff(self._sums[bounds])
            + centroids**2 * np.diff(bounds)
        )
        return np.maximum(errors, 0).sum(axis=-1)  # a difference may round below 0


def _prefix_sums(x, start):
    """float64 array (N + 1,) whose differences are sums; zero at `start`."""
    sums = np.zeros(len(x) + 1)
    np.cumsum(x[start:], dtype=np.float64, out=sums[start + 1 :])
    np.cumsum(-x[:start][::-1], dtype=np.float64, out=sums[:start][::-1])
    return sums


def _float32_above(exact):
    """The smallest float32 that is not below `exact`."""
    rounded = exact.astype(np.float32)
    above = np.nextafter(rounded, np.float32(np.inf))
    return np.where(rounded < exact, above, rounded)


def _cuts(centroids):
    """The smallest float32 nearer to each next centroid, (K - 1,)."""
    return _float32_above((centroids[:-1].astype(np.float64) + centroids[1:]) / 2)


def nearest(x: ArrayLike, centroids: np.ndarray) -> np.ndarray:
    """Returns each value's nearest centroid; half way between two, the larger one.

    Args:
        x: float array of any shape.
        centroids: ascending float32 array (K,).

    Returns:
        float32 array of `x`'s shape.
    """
    cells = np.searchsorted(_cuts(centroids), np.asarray(x, np.float32), side="right")
    return centroids[cells]


def kmeans(
    values: SortedNonZeros, bits: int, rounds: int = 100, tolerance: float = 1e-3
) -> tuple[np.ndarray, float]:
    """Fits 2^bits centroids by k-means, and one more centroid that stays at zero.

    arXiv 1910.05897, Section 3. Lloyd's rounds move each centroid to the mean of the
    values nearest to it. Zero stays, and so does a centroid without values.

    The paper starts from linspace(min, max). Too few of these centroids are where
    weights are dense, and a hundred rounds do not correct that. With 8 bits the
    distortion is 3 times too high for a normal distribution, and 20 times with heavy
    tails. So rounds also start from cells split in two, those with the largest
    distortion first, and the better result is returned.

    Args:
        values: the weights.
        bits: int. Bits of an index into the codebook, 1 to 8.
        rounds: int. Largest number of rounds.
        tolerance: float. Rounds end when one lowers the distortion by a smaller share.

    Returns:
        `(centroids, distortion)`: float32 array (at most 2^bits + 1,), strictly
        ascending, with zero among them; sum of squared errors as a float.

    Raises:
        ValueError: if `bits` is not in 1..8.
    """
    if bits not in range(1, 9):
        raise ValueError(
            f"A k-means codebook has 1 to 8 bits. Received: bits={bits}. "
            "Use a bit-width in that range."
        )
    count = 2**bits
    if values.distinct <= count:
        return np.unique(np.append(values.values, np.float32(0))), 0.0
    starts = (
        np.linspace(values.values[0], values.values[-1], count),
        _split(values, count),
    )
    found = [_lloyd(values, start, rounds, tolerance) for start in starts]
    return min(found, key=lambda result: result[1])


def _split(values, count):
    """Means of `count` cells: those below and above zero, split at their means."""
    cells = []  # heap of (-distortion, first, end, mean)

    def push(bounds):
        means = values.means(bounds, empty=0.0)
        for first, end, mean in zip(bounds[:-1], bounds[1:], means, strict=True):
            if first < end:
                distortion = values.distortion(np.array([first, end]), mean)
                heapq.heappush(cells, (-distortion, first, end, mean))

    push(values.bounds(np.zeros(1, np.float32)))
    while len(cells) < count and cells[0][0] < 0:
        _, first, end, mean = heapq.heappop(cells)
        inside = np.searchsorted(values.values[first:end], _float32_above(mean))
        push(np.array([first, first + inside, end]))
    return np.array([mean for *_, mean in cells])


def _lloyd(values, start, rounds, tolerance):
    """`(centroids, distortion)` of `kmeans` from one start."""
    centroids = np.sort(np.append(start, 0)).astype(np.float32)
    pinned = np.searchsorted(centroids, 0)
    bounds = values.bounds(_cuts(centroids))
    distortion = values.distortion(bounds, centroids)
    for _ in range(rounds):
        centroids = values.means(bounds, empty=centroids).astype(np.float32)
        centroids[pinned] = 0
        bounds = values.bounds(_cuts(centroids))
        before, distortion = distortion, values.distortion(bounds, centroids)
        if before - distortion <= tolerance * distortion:
            break
    used = np.diff(bounds) > 0
    used[pinned] = True
    return np.unique(centroids[used]), float(distortion)


def snapped(
    centroids: ArrayLike, counts: ArrayLike | None = None
) -> tuple[np.ndarray, np.float32]:
    """Rounds centroids to the nearest codebook of integers times one step.

    An 8-bit tensor with one scale stores the result exactly. Candidate steps bring the
    largest centroid to between 64 and 127, as smaller levels are half of such ones.
    Each candidate is replaced by the best step for its levels.

    Args:
        centroids: float array (K,).
        counts: float array (K,) or None. Weights of the squared errors, such as the
            number of values of each centroid. None weighs all alike.

    Returns:
        `(levels, step)`: int8 array (at most K + 1,) in [-127, 127], strictly
        ascending, with zero among them; positive float32.
    """
    centroids = np.asarray(centroids, np.float64)
    largest = np.abs(centroids).max(initial=0.0)
    if largest == 0:
        return np.zeros(1, np.int8), np.float32(1)
    counts = np.ones_like(centroids) if counts is None else np.asarray(counts, float)
    limit = code_limit(8)
    steps = largest / np.linspace(limit, limit / 2, _STEPS)
    levels = np.round(centroids / steps[:, None])
    squares = (counts * levels**2).sum(axis=1)
    products = (counts * levels * centroids).sum(axis=1)
    steps = np.where(squares > 0, products / np.maximum(squares, _TINY), steps)
    errors = (counts * (centroids - levels * steps[:, None]) ** 2).sum(axis=1)
    best = np.argmin(errors)
    codes = np.unique(np.append(levels[best], 0)).astype(np.int8)
    return codes, np.float32(max(steps[best], _TINY))


def uniform_step(
    values: SortedNonZeros, bits: int, steps: int = _STEPS, scans: int = _SCANS
) -> tuple[np.float32, float]:
    """Finds the step of the grid {-L..L} * step with the least squared error.

    L = 2^(bits-1) - 1, as in `tfcompress.quantizers.Uniform`. Values round to the
    nearest level, zero among them; the direction of ties does not change the error. The
    best step is sum(k |w|) / sum(k^2) for the codes k >= 0 of |w|. It therefore lies
    between mean|w| / L and max|w|, where a line search scans.

    Args:
        values: the weights.
        bits: int. Bits of a code, 2 to 8.
        steps: int. Steps of the first scan.
        scans: int. Number of scans, each around the best step of the one before.

    Returns:
        `(step, distortion)`: positive float32; sum of squared errors of all weights as
        a float.

    Raises:
        ValueError: if `bits` is not in 2..8.
    """
    if bits not in range(2, 9):
        raise ValueError(
            "A zero-centered uniform grid has 2 to 8 bits: with one bit there is no "
            f"level except zero. Received: bits={bits}. Use 2 bits or more, or a "
            "k-means codebook."
        )
    if not len(values):
        return np.float32(1), 0.0
    limit = code_limit(bits)
    low = values.mean_magnitude() / limit
    high = values.magnitudes.values[-1]
    found = []
    for scan in range(scans):
        count = min(steps, _FINE_STEPS) if scan else steps
        tried = np.geomspace(low, high, count).clip(_TINY).astype(np.float32)
        errors = _uniform_distortions(values, tried, limit)
        best = np.argmin(errors)
        found.append((values.scale * float(errors[best]), tried[best]))
        low, high = tried[max(best - 1, 0)], tried[min(best + 1, count - 1)]
    distortion, step = min(found)
    return step, distortion


def _uniform_distortions(values, steps, limit):
    """Sum of squared errors for each step: float64 array of the shape of `steps`."""
    steps = steps.astype(np.float64)[:, None]
    # Levels are symmetric, so that magnitudes have the same errors.
    cuts = _float32_above((np.arange(limit) + 0.5) * steps)
    values = values.magnitudes
    return values.distortion(values.bounds(cuts), np.arange(limit + 1) * steps)


def counts_and_distortions(
    values: SortedNonZeros, bit_widths: Iterable[int], codebook: str
) -> list[tuple[np.ndarray, float]]:
    """Computes level counts and distortion of a codebook of each bit-width.

    Args:
        values: the weights.
        bit_widths: ints from 2 to 8; with "kmeans" from 1 to 8.
        codebook: "uniform" or "kmeans".

    Returns:
        `(counts, distortion)` for each bit-width: number of weights at each level other
        than zero, array (K,); sum of squared errors as a float. Both are those of all
        weights, estimated where `values` are a sample.

    Raises:
        ValueError: if `codebook` or a bit-width is not one of these.
    """
    if codebook not in _KINDS:
        raise ValueError(
            f"`codebook` is one of {', '.join(_KINDS)}. Received: {codebook!r}."
        )
    found = []
    for bits in bit_widths:
        if codebook == "uniform":
            step, _ = uniform_step(values, bits, _FEW_STEPS, scans=1)
            limit = code_limit(bits)
            levels = (np.arange(-limit, limit + 1) * step).astype(np.float32)
        else:
            levels, _ = kmeans(values, bits)
        bounds = values.bounds(_cuts(levels))
        counts = values.scale * np.diff(bounds)[levels != 0]
        distortion = values.scale * float(values.distortion(bounds, levels))
        found.append((counts, distortion))
    return found
