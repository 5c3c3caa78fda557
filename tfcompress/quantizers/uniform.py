"""Uniform symmetric quantization of weights."""

from typing import Any

import keras
import numpy as np

from tfcompress.quantizers import functional as F
from tfcompress.quantizers.packing import code_limit
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.types import Tensor

# The best clip of a bell-shaped channel of a few hundred weights is 0.4 of its
# maximum at 2 bits, 0.8 at 4 bits and nearly 1 at 8 bits.
SHRINK_FACTORS = tuple(np.linspace(0.3, 1.0, 15).tolist())


@keras.saving.register_keras_serializable(package="tfcompress")
class Uniform(Quantizer):
    """Quantizer of weights with one step per output channel.

    Codes are integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1]: a symmetric grid with a
    level at zero, which LiteRT's integer kernels need. The step is computed from the
    weights. At 8 bits it covers the channel's maximum; at fewer bits a line search
    finds the clip with the least squared error. The gradient is straight-through.

    Args:
        bits: int. Bits of a code, 2 to 8.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """

    def __init__(self, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bits not in range(2, 9):
            raise ValueError(
                f"`bits` is an integer from 2 to 8. Received: bits={bits}."
            )
        self.bits = int(bits)

    def codes_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        limit = code_limit(self.bits)
        factors = (1.0,) if self.bits == 8 else SHRINK_FACTORS
        scale = F.uniform_scale(x, limit, factors, self.channel_axes)
        return F.uniform_codes(x, scale, limit), scale

    def call(self, kernel: Tensor) -> Tensor:
        codes, scale = self.codes_and_scale(kernel)
        return F.straight_through(codes * scale, kernel)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits}
