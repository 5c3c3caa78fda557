"""What taking channels and ranks loses: energy, as a share of what its layer has left.

The energy of a layer is the variance of its outputs. The product over all layers of the
energy they keep says well what a network keeps ("Accelerating Very Deep Convolutional
Networks", Zhang et al., TPAMI 2016): its logarithm adds up over layers, and falls
without bound as one of them is emptied. A score is what it falls by for each unit of
cost that is saved.
"""

import numpy as np

from tfcompress.core.knapsack import lower_hull

# A group of channels without any energy left scores 0, and not 0 / 0.
TINY = 1e-30


def channel_scores(energies, others, costs):
    """Scores of channels that lie side by side, the lowest to be taken first.

    Args:
        energies: float array (readers, channels), not negative: what each channel adds
            to the outputs of each layer that reads it.
        others: float array (readers,): what channels besides these add.
        costs: float array (channels,), what taking each saves.

    Returns:
        Float array (channels,); infinite for one that would empty a layer.
    """
    costs = np.maximum(costs, TINY)
    whole = np.maximum(energies.sum(axis=1) + others, TINY)
    order = np.argsort((energies / whole[:, None]).sum(axis=0) / costs, kind="stable")
    losses = [_losses(e[order], o) for e, o in zip(energies, others, strict=True)]
    scores = np.sum(losses, axis=0) / costs[order]
    return _in_place(np.maximum.accumulate(scores), order)


def rank_scores(energies, costs, whole):
    """Scores of one layer's ranks, the lowest to be taken first.

    Two layers are dearer than one until many ranks are gone, so that the first of them
    save nothing alone: those between two corners of the lower convex hull of (cost,
    loss) share one score.

    Args:
        energies: float array (ranks,), not negative.
        costs: float array (ranks,): with 1, 2, ... of them left, as two layers;
            infinite where that many are not worth two layers.
        whole: the cost as one layer, with all of them.

    Returns:
        Float array (ranks,); infinite for those that stay whatever else goes.
    """
    order = np.argsort(energies, kind="stable")
    # From all to one left: what is lost, and what each of these costs.
    losses = np.concatenate([[0.0], np.cumsum(_losses(energies[order])[:-1])])
    costs = np.append(whole, costs[-2::-1])
    possible = np.flatnonzero(np.isfinite(costs))
    corners = possible[lower_hull(costs[possible], losses[possible])][::-1]
    scores = np.full(len(energies), np.inf)
    scores[: corners[0]] = 0.0  # without energy
    for before, after in zip(corners, corners[1:], strict=False):
        slope = (losses[after] - losses[before]) / (costs[before] - costs[after])
        scores[before:after] = slope
    return _in_place(scores, order)


def _losses(energies, others=0.0):
    """What taking each loses when those before it are gone, float (n,)."""
    left = np.append(np.cumsum(energies[::-1])[::-1], 0.0) + others
    ratios = np.maximum(left[1:], TINY) / np.maximum(left[:-1], TINY)
    losses = -np.log(ratios)
    return losses if others > 0 else np.append(losses[:-1], np.inf)


def _in_place(values, order):
    result = np.empty_like(values)
    result[order] = values
    return result
