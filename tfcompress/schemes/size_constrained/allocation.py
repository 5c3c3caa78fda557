"""Allocation of a size budget: weights that are kept, and bits of each layer."""

import bisect
import math
from collections.abc import Mapping

import numpy as np

from tfcompress.cost.knapsack import multiple_choice_knapsack
from tfcompress.progress_bar import announced, progress_bar
from tfcompress.quantizers.clustering import (
    SAMPLES,
    SortedNonZeros,
    counts_and_distortions,
)
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.codebooks import Codebooks
from tfcompress.schemes.size_constrained.rate_distortion import operating_points
from tfcompress.types import ArrayLike

# Title of progress bars.
TITLE = "Allocation of the size"
# Nominal bits of a weight are at least this, also where all codes are the same.
_MIN_BITS = 0.1
# The size of an allocation is measured once it is made, so it is corrected this often.
# It is accepted up to `_BELOW` under the budget, or `_CLOSE` to a multiple of it.
_ROUNDS, _BELOW, _CLOSE = 8, 0.01, 0.05


class Allocation:
    """Allocation of one budget to the zeros and bits of all kernels.

    Attributes:
        budget: the `SizeBudget`.
        multiple: float or None. Measured size of the codes after the last allocation
            or projection, as a multiple of the budget for codes.

    Args:
        codebooks: `Codebooks` of the student.
        budget: see the attributes.
    """

    def __init__(self, codebooks: Codebooks, budget: SizeBudget) -> None:
        self.codebooks = codebooks
        self.budget = budget
        self.multiple: float | None = None

    def affords_all(self, factor: float) -> bool:
        """Whether a multiple of the budget pays for all weights at the present bits."""
        bits, kernels = self.codebooks.bits, self.codebooks.kernels()
        values = sum(
            x.size * self.budget.index_bits(bits[n]) for n, x in kernels.items()
        )
        return values <= factor * self.budget.allowed()

    def start(self) -> None:
        """Sets the masks and bits of a new student; its latent kernels stay."""
        with announced(TITLE):
            self._allocate(self.codebooks.kernels(), 1.0, 0.0)

    def tighten(
        self, factor: float = 1.0, min_gain: float = 0.0, exact: bool = False
    ) -> None:
        """Removes the weights and bits that a multiple of the budget does not pay for.

        A weight that was held at zero stays there. A layer may get more bits for fewer
        weights.

        Args:
            factor: float >= 1. Multiple of the budget.
            min_gain: float in [0, 1). Relative decrease of a layer's loss that other
                bits must bring, or the layer keeps its bits.
            exact: bool. Whether sizes are measured as those of files are. Many codes
                then take seconds.
        """
        masks = self.codebooks.masks()
        kernels = {n: x * masks[n] for n, x in self.codebooks.kernels().items()}
        with announced(TITLE):
            masks = self._allocate(kernels, factor, min_gain, exact)
        self.codebooks.set_kernels({n: x * masks[n] for n, x in kernels.items()})

    def shrink(self, share: float) -> None:
        """Removes the smallest weights until a share of the nominal bits remains.

        Codebooks stay as they were trained. Where zeros save nothing, bits are removed
        instead.

        Args:
            share: float < 1.
        """
        codebooks = self.codebooks
        kernels = codebooks.kernels()
        if not self.budget.sparse:
            values = {n: SortedNonZeros(x, SAMPLES) for n, x in kernels.items()}
            bits = self.choose_bits(values, share)
            codebooks.fit(kernels, codebooks.masks(), bits)
            return
        masks = {name: codes != 0 for name, (codes, _) in codebooks.codes().items()}
        kernels = {name: x * masks[name] for name, x in kernels.items()}
        costs = self._bits_per_weight(masks)
        allowed = share * sum(costs[n] * x.sum() for n, x in masks.items())
        min_counts = {
            n: min(x, masks[n].sum()) for n, x in codebooks.min_counts().items()
        }
        codebooks.set_masks(keep_largest(kernels, costs, allowed, min_counts))

    def sparse_masks(
        self, kernels: Mapping[str, np.ndarray], factor: float
    ) -> dict[str, np.ndarray]:
        """Returns keep masks of the weights that the budget pays for.

        The sparse projection of arXiv 1910.05897, Section 3, at the present bits; see
        `keep_largest`.

        Args:
            kernels: float arrays by layer name.
            factor: float >= 1. Multiple of the budget.
        """
        masks = self.codebooks.masks()
        if not self.budget.sparse:
            return masks
        allowed = factor * self.budget.allowed()
        costs = self._bits_per_weight(masks)
        return keep_largest(kernels, costs, allowed, self.codebooks.min_counts())

    def choose_bits(
        self,
        values: Mapping[str, SortedNonZeros],
        share: float = 1.0,
        granted: float = 0.0,
    ) -> dict[str, int]:
        """Returns the bits with the least distortion at the cost of the present bits.

        Args:
            values: weights by layer name.
            share: float. Share of that cost to spend.
            granted: float. Nominal bits that may be spent in any case.
        """
        bit_widths, now = self.codebooks.bit_widths, self.codebooks.bits
        costs, losses, spent = {}, {}, 0.0
        for name, weights in values.items():
            size = math.prod(self.codebooks.layers[name].latent_kernel.shape)
            found = counts_and_distortions(weights, bit_widths, self.codebooks.kind)
            costs[name] = np.array(
                [
                    self.budget.rate(counts, size, bits)
                    for (counts, _), bits in zip(found, bit_widths, strict=True)
                ]
            )
            losses[name] = np.array([distortion for _, distortion in found])
            spent += costs[name][bit_widths.index(now[name])]
        chosen = multiple_choice_knapsack(costs, losses, max(granted, share * spent))
        return {name: bit_widths[i] for name, i in chosen.items()}

    def measure_codes(self, exact: bool = False) -> float:
        """Calibrates the budget by the size of the codes, and returns `multiple`.

        Args:
            exact: see `tighten`.
        """
        budget, codes = self.budget, self.codebooks.codes()
        if exact:
            budget.measure(codes)  # estimates of these codes are then exact
        size = budget.calibrate(codes)
        granted = max(budget.total - budget.overhead, 1.0)
        self.multiple = (size - budget.overhead) / granted
        return self.multiple

    def _allocate(self, kernels, factor, min_gain, exact=False):
        """Sets the masks and bits with the least loss at a multiple of the budget.

        Args:
            kernels: float arrays by layer name; zeros stay zero.
            factor, min_gain, exact: see `tighten`.

        Returns:
            The keep masks by layer name.
        """
        points = self._operating_points(kernels)
        costs = {name: x.costs for name, x in points.items()}
        now = self.codebooks.bits
        losses = {
            name: x.losses / (1.0 - min_gain * (x.bits != now[name]))
            for name, x in points.items()
        }
        least = sum(x.min() for x in costs.values())
        allowed = factor * self.budget.allowed()
        for _ in range(_ROUNDS if self.budget.sparse else 1):
            chosen = multiple_choice_knapsack(
                costs, losses, max(allowed, least), off_hull=True
            )
            bits = {name: int(points[name].bits[i]) for name, i in chosen.items()}
            masks = {
                name: largest(kernels[name], points[name].kept[i])
                for name, i in chosen.items()
            }
            self.codebooks.fit(kernels, masks, bits)
            received = self.measure_codes(exact) / factor
            if 1.0 - _BELOW <= received <= 1.0:
                break
            if factor > 1.0 and abs(received - 1.0) <= _CLOSE:
                break
            allowed *= 0.995 / max(received, 0.1)
        return masks

    def _operating_points(self, kernels):
        min_counts, bit_widths = self.codebooks.min_counts(), self.codebooks.bit_widths
        with progress_bar("Zeros and bits of each layer", len(kernels)) as bar:
            return {
                name: operating_points(x, min_counts[name], self.budget, bit_widths)
                for name, x in bar.over(kernels.items())
            }

    def _bits_per_weight(self, masks):
        """Nominal bits of a kept weight by layer name, with the present codes."""
        nominal = self.budget.nominal_bits(self.codebooks.codes())
        return {n: max(nominal[n] / x.sum(), _MIN_BITS) for n, x in masks.items()}


def set_smallest(codebooks: Codebooks) -> None:
    """Sets the smallest allocation: the least weights of each layer, fewest bits.

    Weights that are held at zero stay there, as far as there are enough others.
    """
    masks = codebooks.masks()
    kernels = {name: x * masks[name] for name, x in codebooks.kernels().items()}
    costs = dict.fromkeys(kernels, 1.0)
    masks = keep_largest(kernels, costs, 0.0, codebooks.min_counts())
    codebooks.fit(kernels, masks, dict.fromkeys(kernels, codebooks.bit_widths[0]))


def keep_largest(
    weights: Mapping[str, ArrayLike],
    bits: Mapping[str, float],
    budget: float,
    min_counts: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Returns masks of the weights with the largest w^2 per bit within a budget.

    The sparse projection of arXiv 1910.05897, Section 3: of all weights of all layers,
    sorted by w^2 / bits, the longest prefix is kept whose bits are within the budget.
    The least weights of each layer are paid for first, and kept also where they cost
    more. Of equal weights, those of the first layer are kept, and in a layer those that
    come first in C order. Zeros are kept only among a layer's least weights.

    Args:
        weights: float arrays of any shapes by layer name; compared in float32.
        bits: positive number by layer name. Cost of a kept weight.
        budget: float. In the same unit.
        min_counts: int by layer name. Number of largest weights that a layer keeps in
            any case, so that none is emptied.

    Returns:
        dict of layer name to bool array of the weights' shape: true for kept weights.

    Raises:
        ValueError: if a layer has fewer weights than its least number, a cost is not
            positive, or a weight is not finite.
    """
    magnitudes = {name: np.sort(_magnitudes(weights[name])) for name in weights}
    for name, ascending in magnitudes.items():
        _check_layer(name, ascending, bits[name], min_counts[name])

    def cost_of(counts):
        return sum(float(bits[name]) * counts[name] for name in weights)

    def counts_above(threshold):
        """Number of weights of each layer with w^2 / bits above the threshold."""
        return {
            name: max(min_counts[name], _count_above(ascending, bits[name], threshold))
            for name, ascending in magnitudes.items()
        }

    budget = max(budget, cost_of(min_counts))
    # Floats that are not negative are in the order of their bit patterns, so that
    # 64 steps find the smallest threshold with a cost within the budget.
    patterns = range(int(np.float64(np.inf).view(np.int64)) + 1)
    first = bisect.bisect_left(
        patterns, True, key=lambda k: cost_of(counts_above(_float(k))) <= budget
    )
    counts = counts_above(_float(first))
    if first > 0:
        _add_equal(counts, counts_above(_float(first - 1)), cost_of, budget)
    return {name: largest(weights[name], counts[name]) for name in weights}


def largest(x: ArrayLike, count: int) -> np.ndarray:
    """Returns a mask of the largest magnitudes; of equal ones, the first.

    Args:
        x: float array of any shape.
        count: int. Number of values to keep, 0 to the size of `x`.

    Returns:
        bool array of `x`'s shape with `count` true.
    """
    if not count:
        return np.zeros(np.shape(x), bool)
    magnitudes = _magnitudes(x)
    smallest = np.partition(magnitudes, len(magnitudes) - count)[-count]
    keep = magnitudes > smallest
    equal = np.flatnonzero(magnitudes == smallest)
    keep[equal[: count - np.count_nonzero(keep)]] = True
    return keep.reshape(np.shape(x))


def _magnitudes(x):
    return np.abs(np.asarray(x, np.float32)).ravel()


def _check_layer(name, ascending, bits, min_count):
    if not bits > 0:
        raise ValueError(
            f"A kept weight costs a positive number of bits. Received: bits={bits} "
            f"for layer '{name}'."
        )
    if not 0 <= min_count <= len(ascending):
        raise ValueError(
            f"The least number of weights of layer '{name}' is 0 to {len(ascending)}. "
            f"Received: min_count={min_count}."
        )
    if len(ascending) and not np.isfinite(ascending[-1]):
        raise ValueError(
            f"Weights must be finite. Received: {ascending[-1]} in layer '{name}'. "
            "Train with a lower learning rate."
        )


def _add_equal(counts, with_equal, cost_of, budget):
    """Adds weights that equal the threshold, layer by layer, while they fit."""
    for name, most in with_equal.items():
        least = counts[name]
        fitting = bisect.bisect_right(
            range(least, most + 1),
            budget,
            key=lambda count, name=name: cost_of({**counts, name: count}),
        )
        counts[name] = least + fitting - 1
        if counts[name] < most:
            return


def _float(pattern):
    """The float64 with this bit pattern."""
    return float(np.int64(pattern).view(np.float64))


def _count_above(ascending, bits, threshold):
    """Number of sorted magnitudes with w^2 / bits > threshold."""
    return len(ascending) - bisect.bisect_right(
        ascending, threshold, key=lambda magnitude: float(magnitude) ** 2 / bits
    )
