"""The compression systems: which layer gets what, and what happens during fit."""

from tfcompress.schemes.compress import compress
from tfcompress.schemes.config import KeepFloat, QuantizeConfig
from tfcompress.schemes.plan import plan
from tfcompress.schemes.pruned_ternary import PrunedTernary
from tfcompress.schemes.scheme import Scheme
from tfcompress.schemes.student import Student

__all__ = [
    "KeepFloat",
    "PrunedTernary",
    "QuantizeConfig",
    "Scheme",
    "Student",
    "compress",
    "plan",
]
