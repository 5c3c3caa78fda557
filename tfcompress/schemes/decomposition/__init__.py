"""Decomposition and channel pruning in one training (EDP, TNNLS 2021)."""

from tfcompress.schemes.decomposition.factorize import Factorize
from tfcompress.schemes.decomposition.scheme import Decomposition

__all__ = ["Decomposition", "Factorize"]
