"""Scores of a student's channels and ranks from activation statistics."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfcompress.graph.channels import Channels, GroupSet
from tfcompress.schemes.decomposition.activation_statistics import ActivationStatistics
from tfcompress.schemes.decomposition.importance import channel_scores, rank_scores
from tfcompress.schemes.decomposition.search_space import RankSpace, removable_groups
from tfcompress.schemes.decomposition.width_model import WidthModel

# Share of the mean norm at which a group counts as zero.
NEGLIGIBLE_NORM = 1e-3


@dataclass(frozen=True)
class Scores:
    """Scores of channels and ranks; a selection removes the lowest.

    Attributes:
        groups: float array (groups,). Scores of the channel dependency groups; infinite
            where a group cannot be removed.
        group_sets: list of int arrays. Removable groups that the same layers have.
        ranks: dict of str to float array (rank,). Scores of the ranks by layer.
    """

    groups: np.ndarray
    group_sets: list[np.ndarray]
    ranks: dict[str, np.ndarray]

    def vector(self) -> np.ndarray:
        """Returns all scores, a float array (groups + ranks of all layers,)."""
        return np.concatenate([self.groups, *self.ranks.values()])

    def with_vector(self, vector: np.ndarray) -> "Scores":
        """Returns the same with other values, in the form of `vector()`."""
        sizes = [len(self.groups), *map(len, self.ranks.values())]
        groups, *ranks = np.split(vector, np.cumsum(sizes)[:-1])
        return Scores(
            groups, self.group_sets, dict(zip(self.ranks, ranks, strict=True))
        )


def equal_scores(width_model: WidthModel, channels: Channels) -> Scores:
    """Returns scores of 0 for all channels and ranks that can be removed."""
    removable = removable_groups(channels, width_model.factorized)
    ranks = {
        name: np.zeros(width_model.terms[name].full_rank)
        for name in width_model.factorized
    }
    sets = [s.groups for s in channels.group_sets if removable[s.groups].all()]
    return Scores(np.where(removable, 0.0, np.inf), sets, ranks)


def compute_scores(
    space: RankSpace, statistics: Mapping[str, ActivationStatistics]
) -> Scores:
    """Returns the present scores, see `importance`; 0 for zero groups.

    Args:
        space: connected `RankSpace` of the student.
        statistics: dict of str to `ActivationStatistics`. Present statistics by layer.

    Raises:
        ValueError: if coefficients are not finite.
    """
    keep_all: np.ndarray = np.ones(len(space.removable), bool)
    ranks, read = {}, {}
    for name in space.layers:
        importances, read[name] = _explained_variances(space, name, statistics[name])
        costs, merged_cost = space.width_model.rank_costs(name, keep_all)
        ranks[name] = rank_scores(importances, costs, merged_cost)
    scores = np.full(len(space.removable), np.inf)
    savings = space.width_model.savings(len(space.removable))
    for group_set, _ in space.channel_groups:
        importances, others = _set_importances(space, group_set, read)
        groups = group_set.groups
        scores[groups] = channel_scores(importances, others, savings[groups])
    group_sets = [group_set.groups for group_set, _ in space.channel_groups]
    return zero_where_removed(Scores(scores, group_sets, ranks), space)


def zero_where_removed(scores: Scores, space: RankSpace) -> Scores:
    """Returns scores that are 0 for the channels and ranks whose norm is zero now.

    Raises:
        ValueError: if coefficients are not finite.
    """
    negligible = NEGLIGIBLE_NORM * space.mean_norm()
    groups = scores.groups.copy()
    for group_set, slices in space.channel_groups:
        groups[group_set.groups[slices.weighted_norms() <= negligible]] = 0.0
    ranks = {
        name: np.where(slices.weighted_norms() <= negligible, 0.0, scores.ranks[name])
        for name, slices in space.rank_groups.items()
    }
    return Scores(groups, scores.group_sets, ranks)


def _explained_variances(space, name, statistics):
    """Variances that each rank, and each input channel, of a layer explains."""
    # Single precision suffices for scores, and takes half the time.
    basis, coefficients = (x.astype(np.float32) for x in space.factors(name))
    scales = space.output_scales(name, coefficients, statistics).astype(np.float32)
    per_rank = np.square(coefficients * scales).sum(axis=1)
    per_rank *= np.diag(statistics.hidden_covariance)
    kernel = basis @ coefficients * scales
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    per_input = np.square(kernel).sum(axis=(0, 2)) * statistics.input_variances
    return per_rank, per_input


def _set_importances(
    space: RankSpace, group_set: GroupSet, read: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Variances that a set's channels, and others, add to each layer that reads them.

    Returns:
        Float arrays (readers, channels) and (readers,).
    """
    importances, others = [], []
    for name in group_set.consumers:
        groups, variances = space.channels.read[name], read[name]
        sums = np.bincount(groups, variances, len(space.removable))[group_set.groups]
        importances.append(sums)
        others.append(variances.sum() - sums.sum())
    return np.array(importances), np.maximum(others, 0.0)
