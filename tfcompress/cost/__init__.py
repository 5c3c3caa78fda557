"""MACs, BOPs, parameters and bytes, with one definition each."""

from tfcompress.cost.arithmetic import bops, entropy_bits, kernel_macs, value_bits
from tfcompress.cost.input_shape import InputShape
from tfcompress.cost.layer_costs import (
    LayerCost,
    ModelCost,
    float32_cost,
    layer_costs,
    total_cost,
)

__all__ = [
    "InputShape",
    "LayerCost",
    "ModelCost",
    "bops",
    "entropy_bits",
    "float32_cost",
    "kernel_macs",
    "layer_costs",
    "total_cost",
    "value_bits",
]
