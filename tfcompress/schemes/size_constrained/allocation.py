"""Where the bits of a budget go: which weights stay, and with how many bits each."""

import bisect

import numpy as np


def keep_largest(weights, bits, budget, floors):
    """Keeps the weights with the most w^2 per bit that a budget pays for.

    The sparse projection of arXiv 1910.05897, Section 3: of all weights of all layers,
    sorted by w^2 / bits, the longest prefix stays whose bits are within the budget.
    The floors are paid for first, and stay also where they cost more. Of equal weights,
    those of the first layer stay, and in a layer those that come first in C order.
    Zeros only stay as part of a floor.

    Args:
        weights: `{layer name: float array}` of any shapes; compared in float32.
        bits: `{layer name: number}`, what a kept weight costs; positive, need not be
            an integer.
        budget: in the same unit.
        floors: `{layer name: integer}`, how many of the largest weights of each layer
            stay in any case, so that none is emptied.

    Returns:
        `{layer name: boolean array}` of the weights' shapes: true where they stay.

    Raises:
        ValueError: if a layer has fewer weights than its floor, a cost is not
            positive, or a weight is not finite.
    """
    magnitudes = {name: np.sort(_magnitudes(weights[name])) for name in weights}
    for name, ascending in magnitudes.items():
        _check_layer(name, ascending, bits[name], floors[name])

    def cost_of(counts):
        return sum(float(bits[name]) * counts[name] for name in weights)

    def counts_above(threshold):
        """How many weights of each layer stay if w^2 / bits has to be larger."""
        return {
            name: max(floors[name], _count_above(ascending, bits[name], threshold))
            for name, ascending in magnitudes.items()
        }

    budget = max(budget, cost_of(floors))
    # Floats that are not negative are in the order of their bit patterns, so that
    # 64 steps find the smallest threshold there is with a cost within the budget.
    patterns = range(int(np.float64(np.inf).view(np.int64)) + 1)
    first = bisect.bisect_left(
        patterns, True, key=lambda k: cost_of(counts_above(_float(k))) <= budget
    )
    counts = counts_above(_float(first))
    if first > 0:
        # Some of the weights that equal the threshold still fit.
        with_equal = counts_above(_float(first - 1))
        for name in weights:
            least, most = counts[name], with_equal[name]
            fitting = bisect.bisect_right(
                range(least, most + 1),
                budget,
                key=lambda count, name=name: cost_of({**counts, name: count}),
            )
            counts[name] = least + fitting - 1
            if counts[name] < most:
                break
    return {name: largest(weights[name], counts[name]) for name in weights}


def _magnitudes(x):
    return np.abs(np.asarray(x, np.float32)).ravel()


def _check_layer(name, ascending, bits, floor):
    if not bits > 0:
        raise ValueError(
            f"A kept weight costs a positive number of bits. Received: bits={bits} "
            f"for layer '{name}'."
        )
    if not 0 <= floor <= len(ascending):
        raise ValueError(
            f"The floor of layer '{name}' is 0 to {len(ascending)}, its number of "
            f"weights. Received: floor={floor}."
        )
    if len(ascending) and not np.isfinite(ascending[-1]):
        raise ValueError(
            f"Weights must be finite. Received: {ascending[-1]} in layer '{name}'. "
            "Train with a lower learning rate."
        )


def _float(pattern):
    """The float64 with this bit pattern."""
    return float(np.int64(pattern).view(np.float64))


def _count_above(ascending, bits, threshold):
    """How many sorted magnitudes have w^2 / bits > threshold."""
    return len(ascending) - bisect.bisect_right(
        ascending, threshold, key=lambda magnitude: float(magnitude) ** 2 / bits
    )


def largest(x, count):
    """Boolean array of `x`'s shape with `count` true; of equal ones, the first."""
    if not count:
        return np.zeros(np.shape(x), bool)
    magnitudes = _magnitudes(x)
    smallest = np.partition(magnitudes, len(magnitudes) - count)[-count]
    keep = magnitudes > smallest
    equal = np.flatnonzero(magnitudes == smallest)
    keep[equal[: count - np.count_nonzero(keep)]] = True
    return keep.reshape(np.shape(x))
