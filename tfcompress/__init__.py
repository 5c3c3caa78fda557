"""Compression of trained Keras 3 models, to a `.tflite` file with proven contents."""

import importlib
from typing import Any

from tfcompress import layers, quantizers
from tfcompress.core import (
    Distillation,
    KeepFloat,
    QuantizeConfig,
    callbacks,
    compress,
    dequantize,
    finalize,
    plan,
)
from tfcompress.legacy import load_legacy
from tfcompress.reporting import summary
from tfcompress.schemes import (
    BitSharing,
    Decomposition,
    Factorize,
    PrunedTernary,
    SizeConstrained,
    Uniform,
)
from tfcompress.schemes.bit_sharing.bops_budget import BopsBudget
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate
from tfcompress.version import __version__

# Layers of one scheme that are public in `tfcompress.layers`.
for _layer in (BopsBudget, FilterGate):
    setattr(layers, _layer.__name__, _layer)

__all__ = [
    "BitSharing",
    "Decomposition",
    "Distillation",
    "Factorize",
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "SizeConstrained",
    "Uniform",
    "__version__",
    "callbacks",
    "compress",
    "dequantize",
    "export",
    "finalize",
    "layers",
    "litert",
    "load_legacy",
    "plan",
    "quantizers",
    "summary",
]


def __getattr__(name: str) -> Any:
    # Not imported at the top: a machine that only trains may lack LiteRT.
    if name in ("export", "litert"):
        try:
            litert = importlib.import_module("tfcompress.litert")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"`tfcompress.{name}` needs TensorFlow and LiteRT. Save the finalized "
                "model as `.keras` and export it where `pip install tfcompress` has "
                f"installed them. Missing here: {error.name}.",
                name=error.name,
            ) from error
        return litert if name == "litert" else litert.export
    raise AttributeError(f"module 'tfcompress' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), "export", "litert"})
