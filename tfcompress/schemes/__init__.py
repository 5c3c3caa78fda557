"""The compression systems: which layer gets what, and what happens during fit."""

from tfcompress.schemes.bit_sharing import BitSharing
from tfcompress.schemes.compress import compress
from tfcompress.schemes.config import KeepFloat, QuantizeConfig
from tfcompress.schemes.decomposition import Decomposition
from tfcompress.schemes.factorize import Factorize
from tfcompress.schemes.plan import plan
from tfcompress.schemes.pruned_ternary import PrunedTernary
from tfcompress.schemes.scheme import Scheme
from tfcompress.schemes.size_constrained import SizeConstrained
from tfcompress.schemes.student import Student
from tfcompress.schemes.uniform import Uniform

__all__ = [
    "BitSharing",
    "Decomposition",
    "Factorize",
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "SizeConstrained",
    "Scheme",
    "Student",
    "Uniform",
    "compress",
    "plan",
]
