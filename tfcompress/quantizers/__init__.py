"""Quantizers of kernels and activations, 2 to 8 bits."""

from tfcompress.quantizers.activation import (
    ActivationQuantizer,
    FixedActivation,
    UniformActivation,
)
from tfcompress.quantizers.bit_sharing import BitSharing, BitSharingActivation
from tfcompress.quantizers.codebook import Codebook
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.quantizers.ternary import Ternary
from tfcompress.quantizers.uniform import Uniform

__all__ = [
    "ActivationQuantizer",
    "BitSharing",
    "BitSharingActivation",
    "Codebook",
    "FixedActivation",
    "Quantizer",
    "Ternary",
    "Uniform",
    "UniformActivation",
]
