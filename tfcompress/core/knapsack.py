"""The multiple-choice knapsack over layers, and the lower convex hull."""

import heapq

import numpy as np


def multiple_choice_knapsack(costs, losses, budget, off_hull=False):
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
