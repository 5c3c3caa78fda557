"""Baselines: the simplest method of each kind, trained like the schemes."""

from recipes.common.baselines.narrower import l1_pruned, narrow
from recipes.common.baselines.weights import MagnitudePruning, TernaryWeightNetwork

__all__ = ["MagnitudePruning", "TernaryWeightNetwork", "l1_pruned", "narrow"]
