"""From trained norms to the channels and ranks that meet a budget."""

from dataclasses import dataclass

import numpy as np

from tfcompress.core.budget import SLACK

# Of each group of channels this share stays: without any, a layer learns nothing.
LEAST_KEPT = 1 / 8


@dataclass(frozen=True)
class Scores:
    """What each channel and each rank is worth; a cut takes the lowest.

    Attributes:
        classes: float array over all classes of channels; infinite where a class
            cannot be removed.
        groups: list of int arrays: classes that lie side by side in the same layers.
        ranks: `{layer name: float array (rank,)}`.
    """

    classes: np.ndarray
    groups: list
    ranks: dict


@dataclass(frozen=True)
class Cut:
    """What stays.

    Attributes:
        alive: boolean array over the classes of channels.
        ranks: `{layer name: boolean array (rank,)}`; all true where a layer is not
            decomposed.
        cost: of what stays, in the width model's unit.
    """

    alive: np.ndarray
    ranks: dict
    cost: float


def lowest_cost(width_model, scores, round_to=1):
    """The least that any cut leaves."""
    return cut_at(np.inf, width_model, scores, round_to).cost


def choose_cut(width_model, scores, budget, round_to=1):
    """The cut by one threshold on all scores that meets the budget.

    The threshold is found by bisection; then the best of what is gone comes back as
    far as the budget allows, because a threshold takes many at once where they tie.

    Args:
        width_model: a `tfcompress.schemes.decomposition.width_model.WidthModel`.
        scores: `Scores`.
        budget: in its unit, not below `lowest_cost`.
        round_to: each group of channels keeps a multiple of this, or all.

    Returns:
        A `Cut` that costs at most `budget`, and at least 1 - `SLACK` of it wherever
        single channels or ranks allow that.
    """
    values = np.concatenate([scores.classes, *scores.ranks.values()])
    values = np.unique(values[np.isfinite(values)])
    everything = cut_at(-np.inf, width_model, scores, round_to)
    if everything.cost <= budget:
        return everything
    low, high = -1, len(values) - 1  # at `high` the budget is met, at `low` it is not
    while high - low > 1:
        middle = (low + high) // 2
        cost = cut_at(values[middle], width_model, scores, round_to).cost
        low, high = (low, middle) if cost <= budget else (middle, high)
    threshold = values[high] if len(values) else np.inf
    cut = cut_at(threshold, width_model, scores, round_to)
    if cut.cost > budget:
        cut = cut_at(np.inf, width_model, scores, round_to)
    return _refilled(cut, width_model, scores, budget, round_to)


def cut_at(threshold, width_model, scores, round_to=1):
    """The `Cut` of all channels and ranks with scores up to a threshold."""
    alive = np.isinf(scores.classes) | (scores.classes > threshold)
    for group in scores.groups:
        _keep_enough(alive, group, scores.classes, round_to)
    ranks = {}
    for name, values in scores.ranks.items():
        ranks[name] = values > threshold
        ranks[name][np.argmax(values)] = True
    return _settled(alive, ranks, width_model)


def _keep_enough(alive, group, values, round_to):
    """Brings back the best of a group: a least share, and a multiple of `round_to`."""
    least = max(1, int(np.ceil(LEAST_KEPT * len(group))))
    wanted = max(least, int(alive[group].sum()))
    wanted = min(len(group), -(-wanted // round_to) * round_to)
    alive[group[np.argsort(-values[group], kind="stable")[:wanted]]] = True


def _settled(alive, ranks, width_model):
    """A `Cut`; layers that are not worth two keep all of their ranks."""
    for name, kept in ranks.items():
        if not width_model.is_decomposed(name, alive, int(kept.sum())):
            ranks[name] = np.ones_like(kept)
    counts = {name: int(kept.sum()) for name, kept in ranks.items()}
    return Cut(alive, ranks, width_model.total(alive, counts))


def _refilled(cut, width_model, scores, budget, round_to):
    for _, name, index in _best_first(cut, scores, round_to):
        if cut.cost >= (1 - SLACK) * budget:
            break
        alive = cut.alive.copy()
        ranks = {layer: kept.copy() for layer, kept in cut.ranks.items()}
        if name is None:
            alive[index] = True
        else:
            ranks[name][index] = True
        other = _settled(alive, ranks, width_model)
        if cut.cost < other.cost <= budget:
            cut = other
    return cut


def _best_first(cut, scores, round_to):
    """`(score, layer name or None, indices)` of what a cut took, the best first."""
    gone = []
    for group in scores.groups:
        dead = group[~cut.alive[group]]
        dead = dead[np.argsort(-scores.classes[dead], kind="stable")]
        for first in range(0, len(dead), round_to):
            indices = dead[first : first + round_to]
            gone.append((scores.classes[indices].mean(), None, indices))
    for name, kept in cut.ranks.items():
        for index in np.flatnonzero(~kept):
            gone.append((scores.ranks[name][index], name, index))
    return sorted(gone, key=lambda item: -item[0])
