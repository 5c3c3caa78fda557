"""Where the bits of a budget go: which weights stay, and with how many bits each."""

import bisect
import heapq

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


def allocate_bits(costs, losses, budget, off_hull=False):
    """One choice per layer with a small sum of losses within a budget.

    The greedy multiple-choice knapsack of arXiv 1910.05897, Section 3. Of each layer,
    only choices on the lower convex hull of (cost, loss) are candidates. All layers
    start with the cheapest; increments follow, the most loss per cost first. A layer
    whose next increment does not fit stays as it is, and the others go on.

    The sum of losses exceeds the least possible by no more than the first increment
    that does not fit would gain.

    Args:
        costs: `{layer name: array (choices,)}`; floats in any unit and any order.
        losses: `{layer name: array (choices,)}`, the same layers.
        budget: in the unit of the costs.
        off_hull: whether a layer whose next increment does not fit takes the best
            choice that does, also off the hull, before the others go on. For many
            choices per layer, where the hull may leap from next to nothing to half.

    Returns:
        `{layer name: index of the choice}`.

    Raises:
        ValueError: if the cheapest choices exceed the budget.
    """
    hulls = {name: lower_hull(costs[name], losses[name]) for name in costs}
    spent = sum(float(costs[name][hull[0]]) for name, hull in hulls.items())
    if spent > budget:
        raise ValueError(
            f"The smallest possible budget is {spent:.10g}: the cheapest choice of "
            f"every layer. Received: budget={budget:.10g}. Raise the budget, or give "
            "cheaper choices."
        )
    chosen = dict.fromkeys(costs, 0)
    between = {}  # choices off the hull
    increments = []  # heap of (-loss per cost, number of the layer, name)

    def push_next(number, name):
        before, after = hulls[name][chosen[name] :][:2]
        gain = losses[name][before] - losses[name][after]
        increment = costs[name][after] - costs[name][before]
        heapq.heappush(increments, (-gain / increment, number, name, increment))

    for number, name in enumerate(costs):
        if len(hulls[name]) > 1:
            push_next(number, name)
    while increments:
        _, number, name, increment = heapq.heappop(increments)
        if spent + increment > budget:
            if off_hull:
                now = hulls[name][chosen[name]]
                left = max(0.0, budget - spent)  # not below zero by rounding
                within = costs[name] <= costs[name][now] + left
                best = int(np.argmin(np.where(within, losses[name], np.inf)))
                spent += float(costs[name][best] - costs[name][now])
                between[name] = best
            continue
        spent += increment
        chosen[name] += 1
        if chosen[name] + 1 < len(hulls[name]):
            push_next(number, name)
    return {n: int(hulls[n][index]) for n, index in chosen.items()} | between


def lower_hull(costs, losses):
    """Indices on the lower convex hull: costs increase and losses decrease."""
    hull = []
    for index in np.lexsort((losses, costs)):
        if hull and losses[index] >= losses[hull[-1]]:
            continue  # dominated: not cheaper and no better
        while len(hull) > 1 and _slope(costs, losses, hull[-1], index) < _slope(
            costs, losses, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(costs, losses, first, second):
    return (losses[second] - losses[first]) / (costs[second] - costs[first])
