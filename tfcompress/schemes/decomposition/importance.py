"""Scores of channels and ranks: loss of explained variance per unit of cost saved.

The importance of a channel or rank is the variance of a layer's outputs that it
explains. The product over all layers of the variance shares that they keep is a good
proxy for the accuracy ("Accelerating Very Deep Convolutional Networks", Zhang et al.,
TPAMI 2016). Its logarithm adds up over layers, and falls without bound as a layer is
emptied. A score is the fall of that logarithm divided by the cost saved.
"""

import numpy as np

from tfcompress.cost.knapsack import lower_hull

# Least variance and cost: a set of channels without variance scores 0, and not 0 / 0.
TINY = 1e-30


def channel_scores(
    importances: np.ndarray, other_variances: np.ndarray, savings: np.ndarray
) -> np.ndarray:
    """Returns the scores of channels that the same layers read.

    Channels are removed by ascending score.

    Args:
        importances: float array (readers, channels), not negative. Variance that each
            channel adds to the outputs of each layer that reads it.
        other_variances: float array (readers,). Variance that other channels add.
        savings: float array (channels,). Cost that the removal of each saves.

    Returns:
        Float array (channels,); infinite for a channel whose removal empties a layer.
    """
    savings = np.maximum(savings, TINY)
    totals = np.maximum(importances.sum(axis=1) + other_variances, TINY)
    shares = (importances / totals[:, None]).sum(axis=0)
    order = np.argsort(shares / savings, kind="stable")
    losses = [
        _losses(values[order], other)
        for values, other in zip(importances, other_variances, strict=True)
    ]
    scores = np.sum(losses, axis=0) / savings[order]
    return _in_place(np.maximum.accumulate(scores), order)


def rank_scores(
    importances: np.ndarray, costs: np.ndarray, merged_cost: float
) -> np.ndarray:
    """Returns the scores of one layer's ranks.

    Two layers cost more than one until many ranks are removed, so the first ranks save
    nothing alone. Ranks between two corners of the lower convex hull of (cost, loss)
    therefore share one score.

    Args:
        importances: float array (ranks,), not negative. Variance that each explains.
        costs: float array (ranks,). Cost of two layers with 1, 2, ... ranks; infinite
            where the layer is not decomposed.
        merged_cost: float. Cost of one layer with all ranks.

    Returns:
        Float array (ranks,); infinite for ranks that no threshold removes.
    """
    order = np.argsort(importances, kind="stable")
    # Index i is the loss and the cost once i ranks are removed.
    losses = np.concatenate([[0.0], np.cumsum(_losses(importances[order])[:-1])])
    costs = np.append(merged_cost, costs[-2::-1])
    possible = np.flatnonzero(np.isfinite(costs))
    corners = possible[lower_hull(costs[possible], losses[possible])][::-1]
    scores = np.full(len(importances), np.inf)
    scores[: corners[0]] = 0.0  # ranks that explain nothing
    for before, after in zip(corners, corners[1:], strict=False):
        slope = (losses[after] - losses[before]) / (costs[before] - costs[after])
        scores[before:after] = slope
    return _in_place(scores, order)


def _losses(importances: np.ndarray, other: float = 0.0) -> np.ndarray:
    """Loss of each removal once those before it are removed, float array (n,)."""
    left = np.append(np.cumsum(importances[::-1])[::-1], 0.0) + other
    ratios = np.maximum(left[1:], TINY) / np.maximum(left[:-1], TINY)
    losses = -np.log(ratios)
    return losses if other > 0 else np.append(losses[:-1], np.inf)


def _in_place(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    result = np.empty_like(values)
    result[order] = values
    return result
