"""How a tensor becomes few bits."""

from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.quantizers.ternary import Ternary
from tfcompress.quantizers.uniform import Uniform

__all__ = ["Quantizer", "Ternary", "Uniform"]
