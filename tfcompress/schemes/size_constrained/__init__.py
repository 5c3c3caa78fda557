"""Joint sparsity and quantization under one size (arXiv 1910.05897)."""

from tfcompress.schemes.size_constrained.scheme import SizeConstrained

__all__ = ["SizeConstrained"]
