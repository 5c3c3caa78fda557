"""Uniform symmetric quantization on a zero-centred grid."""

import keras
import numpy as np

from tfcompress.quantizers import functional as F
from tfcompress.quantizers.packing import code_limit
from tfcompress.quantizers.quantizer import Quantizer

# A bell-shaped channel of a few hundred weights is best clipped at 0.4 of its
# maximum with 2 bits, at 0.8 with 4 and nearly not at all with 8.
SHRINK_FACTORS = tuple(np.linspace(0.3, 1.0, 15).tolist())


@keras.saving.register_keras_serializable(package="tfcompress")
class Uniform(Quantizer):
    """Integer codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1], one step per channel.

    The grid is symmetric with a level at zero, as LiteRT's integer kernels want
    it. The step follows the weights: the channel's maximum at 8 bits, the clip
    with the least squared error (line search) below. The gradient is passed
    straight through.

    Args:
        bits: 2 to 8.
    """

    def __init__(self, bits=8, **kwargs):
        super().__init__(**kwargs)
        if bits not in range(2, 9):
            raise ValueError(
                f"`bits` is an integer from 2 to 8. Received: bits={bits}."
            )
        self.bits = int(bits)

    def codes_and_scale(self, x):
        limit = code_limit(self.bits)
        factors = (1.0,) if self.bits == 8 else SHRINK_FACTORS
        scale = F.uniform_scale(x, limit, factors, self.channel_axes)
        return F.uniform_codes(x, scale, limit), scale

    def call(self, kernel):
        codes, scale = self.codes_and_scale(kernel)
        return F.straight_through(codes * scale, kernel)

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}
