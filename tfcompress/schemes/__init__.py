"""Schemes, one folder each, and the baseline of uniform bits."""

from tfcompress.core import KeepFloat, QuantizeConfig, Scheme, Student, compress, plan
from tfcompress.schemes.bit_sharing import BitSharing
from tfcompress.schemes.decomposition import Decomposition, Factorize
from tfcompress.schemes.size_constrained import SizeConstrained
from tfcompress.schemes.ternary import PrunedTernary
from tfcompress.schemes.uniform import Uniform

__all__ = [
    "BitSharing",
    "Decomposition",
    "Factorize",
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "Scheme",
    "SizeConstrained",
    "Student",
    "Uniform",
    "compress",
    "plan",
]
