"""tfcompress: trained Keras 3 models made small, to a `.tflite` that is proven."""

from tfcompress import layers, quantizers
from tfcompress.export import export
from tfcompress.reporting import summary
from tfcompress.schemes import (
    KeepFloat,
    PrunedTernary,
    QuantizeConfig,
    compress,
    plan,
)
from tfcompress.surgery import finalize

__all__ = [
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "compress",
    "export",
    "finalize",
    "layers",
    "plan",
    "quantizers",
    "summary",
]
