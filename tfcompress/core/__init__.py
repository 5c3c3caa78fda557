"""Steps from a model to a student and to its inference form, for all schemes."""

from tfcompress.core.callbacks import callbacks
from tfcompress.core.compress import compress
from tfcompress.core.config import KeepFloat, QuantizeConfig
from tfcompress.core.dequantize import dequantize
from tfcompress.core.distillation.distillation import Distillation
from tfcompress.core.finalize import finalize
from tfcompress.core.plan import plan
from tfcompress.core.scheme import Scheme
from tfcompress.core.student import Student

__all__ = [
    "Distillation",
    "KeepFloat",
    "QuantizeConfig",
    "Scheme",
    "Student",
    "callbacks",
    "compress",
    "dequantize",
    "finalize",
    "plan",
]
