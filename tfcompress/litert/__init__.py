"""Export to `.tflite` files with low-bit kernels, and their verification."""

from tfcompress.litert.convert import float_tflite
from tfcompress.litert.exporter import export, packed_size
from tfcompress.litert.memory import peak_memory
from tfcompress.litert.proof.check import check
from tfcompress.litert.runtime import predict
from tfcompress.litert.timing import latency

__all__ = [
    "check",
    "export",
    "float_tflite",
    "latency",
    "packed_size",
    "peak_memory",
    "predict",
]
