"""Pruned ternary quantization (arXiv 2107.10998)."""

from tfcompress.schemes.ternary.scheme import PrunedTernary

__all__ = ["PrunedTernary"]
