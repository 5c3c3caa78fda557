"""`.tflite` files with real low-bit kernels, and the proof."""

from tfcompress.export.check import check
from tfcompress.export.convert import float_tflite
from tfcompress.export.exporter import export
from tfcompress.export.runtime import latency, predict

__all__ = ["check", "export", "float_tflite", "latency", "predict"]
