"""tfcompress: trained Keras 3 models made small, to a `.tflite` that is proven."""

from tfcompress import layers, quantizers
from tfcompress.reporting import summary
from tfcompress.schemes import (
    BitSharing,
    Decomposition,
    Factorize,
    KeepFloat,
    PrunedTernary,
    QuantizeConfig,
    SizeConstrained,
    Uniform,
    compress,
    plan,
)
from tfcompress.surgery import dequantize, finalize

__all__ = [
    "BitSharing",
    "Decomposition",
    "Factorize",
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "SizeConstrained",
    "Uniform",
    "compress",
    "dequantize",
    "export",
    "finalize",
    "layers",
    "plan",
    "quantizers",
    "summary",
]


def __getattr__(name):
    # Not imported at the top: a machine that only trains may lack LiteRT.
    if name == "export":
        from tfcompress.litert import export

        return export
    raise AttributeError(f"module 'tfcompress' has no attribute '{name}'")
