"""The graph: reading it, rebuilding it, folding batch normalization."""

from tfcompress.surgery.dequantize import dequantize
from tfcompress.surgery.finalize import finalize

__all__ = ["dequantize", "finalize"]
