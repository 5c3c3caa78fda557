"""Layers that quantize while training, and packed ones for inference."""

from tfcompress.layers.activation import QuantizeActivation
from tfcompress.layers.bops_budget import BopsBudget
from tfcompress.layers.filter_gate import FilterGate
from tfcompress.layers.packed import (
    PackedConv1D,
    PackedConv2D,
    PackedDense,
    PackedDepthwiseConv2D,
    PackedKernel,
)
from tfcompress.layers.quantized import (
    QuantConv1D,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantizedKernel,
)

__all__ = [
    "BopsBudget",
    "FilterGate",
    "PackedConv1D",
    "PackedConv2D",
    "PackedDense",
    "PackedDepthwiseConv2D",
    "PackedKernel",
    "QuantConv1D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "QuantizeActivation",
    "QuantizedKernel",
]
