"""The graph: reading it, rebuilding it, folding batch normalization."""

from tfcompress.surgery.finalize import finalize

__all__ = ["finalize"]
