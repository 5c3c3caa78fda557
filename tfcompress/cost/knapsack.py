"""Multiple-choice knapsack over layers, and the lower convex hull."""

import heapq
from collections.abc import Mapping

import numpy as np

from tfcompress.types import ArrayLike


def multiple_choice_knapsack(
    costs: Mapping[str, ArrayLike],
    losses: Mapping[str, ArrayLike],
    budget: float,
    off_hull: bool = False,
) -> dict[str, int]:
    """Returns a choice per layer with a small sum of losses within a budget.

    This is the greedy multiple-choice knapsack of arXiv 1910.05897, Section 3. The
    candidates of a layer are its choices on the lower convex hull of (cost, loss). All
    layers start with the cheapest. Increments follow, the most loss per cost first. A
    layer whose next increment does not fit stays as it is, and the others continue.

    The sum of losses exceeds the optimum by at most the gain of the first increment
    that does not fit.

    Args:
        costs: `{layer name: array (choices,)}`; floats in any unit and any order.
        losses: `{layer name: array (choices,)}`, the same layers.
        budget: float, in the unit of the costs.
        off_hull: bool. Whether a layer whose next increment does not fit takes the best
            choice that does, also off the hull. It helps with many choices per layer,
            between which the hull may have wide gaps.

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
    increments: list[tuple] = []  # heap of (-loss per cost, number of the layer, name)

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


def lower_hull(costs: ArrayLike, losses: ArrayLike) -> list[int]:
    """Returns the indices on the lower convex hull of (cost, loss).

    Args:
        costs: float array (choices,).
        losses: float array (choices,).

    Returns:
        Indices by increasing cost and decreasing loss.
    """
    hull: list[int] = []
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
