"""Selection of the channels and ranks that meet a budget, by their scores."""

from dataclasses import dataclass

import numpy as np

from tfcompress.core.budget import SLACK
from tfcompress.schemes.decomposition.scoring import Scores
from tfcompress.schemes.decomposition.width_model import WidthModel

# Share of each set of channels that stays: a layer without any learns nothing.
LEAST_KEPT = 1 / 8


@dataclass(frozen=True)
class Selection:
    """Channels and ranks that stay.

    Attributes:
        keep_groups: bool array (groups,). Keep mask of the channel dependency groups.
        keep_ranks: dict of str to bool array (rank,). Keep masks of the ranks by layer;
            all true where a layer is not decomposed.
        cost: float. Cost of the kept channels and ranks, in the width model's unit.
    """

    keep_groups: np.ndarray
    keep_ranks: dict[str, np.ndarray]
    cost: float


def lowest_cost(width_model: WidthModel, scores: Scores, round_to: int = 1) -> float:
    """Returns the lowest cost of any selection."""
    return select_above(np.inf, width_model, scores, round_to).cost


def select(
    width_model: WidthModel, scores: Scores, budget: float, round_to: int = 1
) -> Selection:
    """Returns the selection by one threshold on all scores that meets a budget.

    The threshold is found by bisection. Many scores may tie at it, so the best of the
    removed channels and ranks then come back as far as the budget allows.

    Args:
        width_model: `WidthModel`.
        scores: `Scores`.
        budget: float. Cost in the width model's unit, not below `lowest_cost`.
        round_to: int. Each set of channels keeps a multiple of it, or all.

    Returns:
        A `Selection` that costs at most `budget`, and at least 1 - `SLACK` of it
        wherever single channels or ranks allow that.
    """
    values = np.concatenate([scores.groups, *scores.ranks.values()])
    values = np.unique(values[np.isfinite(values)])
    everything = select_above(-np.inf, width_model, scores, round_to)
    if everything.cost <= budget:
        return everything
    low, high = -1, len(values) - 1  # the budget is met at `high`, and not at `low`
    while high - low > 1:
        middle = (low + high) // 2
        cost = select_above(values[middle], width_model, scores, round_to).cost
        low, high = (low, middle) if cost <= budget else (middle, high)
    threshold = values[high] if len(values) else np.inf
    selection = select_above(threshold, width_model, scores, round_to)
    if selection.cost > budget:
        selection = select_above(np.inf, width_model, scores, round_to)
    return _refilled(selection, width_model, scores, budget, round_to)


def select_above(
    threshold: float, width_model: WidthModel, scores: Scores, round_to: int = 1
) -> Selection:
    """Returns the selection of all channels and ranks with scores above a threshold.

    Each set of channels keeps its least share, and each layer its best rank.
    """
    keep_groups = np.isinf(scores.groups) | (scores.groups > threshold)
    for groups in scores.group_sets:
        _keep_enough(keep_groups, groups, scores.groups, round_to)
    keep_ranks = {}
    for name, values in scores.ranks.items():
        keep_ranks[name] = values > threshold
        keep_ranks[name][np.argmax(values)] = True
    return _selection(keep_groups, keep_ranks, width_model)


def _keep_enough(keep_groups, groups, values, round_to):
    """Keeps the best of a set: a least share, and a multiple of `round_to`."""
    least = max(1, int(np.ceil(LEAST_KEPT * len(groups))))
    wanted = max(least, int(keep_groups[groups].sum()))
    wanted = min(len(groups), -(-wanted // round_to) * round_to)
    keep_groups[groups[np.argsort(-values[groups], kind="stable")[:wanted]]] = True


def _selection(keep_groups, keep_ranks, width_model):
    """A `Selection` in which layers that stay one layer keep all of their ranks."""
    keep_ranks = _with_all_of_merged(keep_ranks, keep_groups, width_model)
    counts = {name: int(keep.sum()) for name, keep in keep_ranks.items()}
    return Selection(keep_groups, keep_ranks, width_model.cost(keep_groups, counts))


def _with_all_of_merged(keep_ranks, keep_groups, width_model):
    """The masks, which are full for layers that stay one layer."""
    return {
        name: keep
        if width_model.is_decomposed(name, keep_groups, int(keep.sum()))
        else np.ones_like(keep)
        for name, keep in keep_ranks.items()
    }


def _refilled(selection, width_model, scores, budget, round_to):
    """The selection with the best of the removed, as far as the budget allows."""
    groups, ranks, total = (
        selection.keep_groups.copy(),
        selection.keep_ranks,
        selection.cost,
    )
    costs = width_model.costs(groups, {n: int(x.sum()) for n, x in ranks.items()})
    layers_of = width_model.layers_of_groups(len(groups))
    for _, name, index in _removed_best_first(selection, scores, round_to):
        if total >= (1 - SLACK) * budget:
            break
        # Of all costs, those of these layers alone change.
        changed = {name} if name else set().union(*(layers_of[i] for i in index))
        others = {x: ranks[x] for x in changed if x in ranks}
        if name:
            others[name] = others[name] | (np.arange(len(others[name])) == index)
        else:
            groups[index] = True
        others = _with_all_of_merged(others, groups, width_model)
        other_costs = {**costs}
        for x in changed:
            rank = int(others[x].sum()) if x in others else None
            other_costs[x] = width_model.layer_cost(x, groups, rank)
        cost = sum(other_costs.values())
        if total < cost <= budget:
            ranks, costs, total = {**ranks, **others}, other_costs, cost
        elif not name:
            groups[index] = False
    return Selection(groups, ranks, total)


def _removed_best_first(selection, scores, round_to):
    """List of `(score, layer name or None, indices)`: the removed, the best first."""
    removed = []
    for groups in scores.group_sets:
        gone = groups[~selection.keep_groups[groups]]
        gone = gone[np.argsort(-scores.groups[gone], kind="stable")]
        for first in range(0, len(gone), round_to):
            indices = gone[first : first + round_to]
            removed.append((scores.groups[indices].mean(), None, indices))
    for name, keep in selection.keep_ranks.items():
        for index in np.flatnonzero(~keep):
            removed.append((scores.ranks[name][index], name, index))
    return sorted(removed, key=lambda item: -item[0])
