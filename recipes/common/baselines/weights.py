"""Baselines of ternary weights: plain TWN, and magnitude pruning with few bits."""

import keras
import numpy as np
from keras import ops

import tfcompress as tfc
from tfcompress.core.scheme import Scheme
from tfcompress.core.training.calibration import quantized_layers
from tfcompress.core.training.progress import ProgressCallback
from tfcompress.quantizers import Quantizer, Uniform
from tfcompress.quantizers import functional as F

# Share of the training at which the sparsity is reached (Zhu and Gupta, 2017).
RAMP_END = 0.5


@keras.saving.register_keras_serializable(package="recipes")
class TernaryWeights(Quantizer):
    """Quantizer of ternary weight networks (Li et al., 2016).

    A filter w becomes a * sign(w) where |w| >= 0.7 mean |w|, else 0; a is the mean of
    |w| there. The gradient is straight-through.
    """

    bits = 2

    def codes_and_scale(self, x):
        threshold = F.mean_threshold(x, self.channel_axes)
        codes = F.ternary_codes(x, ops.abs(x) >= threshold)
        scale = F.ternary_scale(x, codes, self.channel_axes)
        return codes, ops.where(scale > 0, scale, ops.ones_like(scale))

    def call(self, kernel):
        codes, scale = self.codes_and_scale(kernel)
        return F.straight_through(codes * scale, kernel)


@keras.saving.register_keras_serializable(package="recipes")
class MaskedUniform(Uniform):
    """Quantizer of uniform bits whose mask sets weights to zero.

    Masked weights get gradients too, and may come back while the mask changes.

    Variables (not trainable):
        mask: float32, of the kernel's shape. 1 where a weight stays, 0 elsewhere.
    """

    def build(self, kernel_shape):
        self.mask = self.add_weight(
            name="mask",
            shape=kernel_shape,
            initializer="ones",
            trainable=False,
            aggregation="only_first_replica",
        )

    def codes_and_scale(self, x):
        return super().codes_and_scale(x * self.mask)


class _WeightsOnly(Scheme):
    """Scheme with float activations, and 8-bit first and last layers by default.

    Args:
        first_last: str. Weights of the first and the last layers: "8bit", or "ternary"
            for those of all other layers.
        weight_decay, overrides: see `tfcompress.core.scheme.Scheme`.
    """

    def __init__(self, first_last="8bit", weight_decay=1e-4, overrides=None):
        super().__init__(overrides, weight_decay)
        self.first_last = first_last

    def quantizer(self):
        """Returns the quantizer of the layers between the first and the last."""
        raise NotImplementedError

    def config_for(self, layer, place):
        at_end = place.is_first or place.is_last
        if at_end and self.first_last == "8bit":
            return tfc.QuantizeConfig(Uniform(8))
        return tfc.QuantizeConfig(self.quantizer())

    def get_config(self):
        return {**super().get_config(), "first_last": self.first_last}


@keras.saving.register_keras_serializable(package="recipes")
class TernaryWeightNetwork(_WeightsOnly):
    """Scheme of ternary weight networks (Li et al., 2016), one scale per filter.

    Args:
        first_last, weight_decay, overrides: see `_WeightsOnly`.
    """

    def quantizer(self):
        return TernaryWeights()


@keras.saving.register_keras_serializable(package="recipes")
class MagnitudePruning(_WeightsOnly):
    """Scheme that prunes by magnitude and trains the rest with uniform bits.

    The smallest weights of each kernel become zero, along a cubic ramp from none to
    `sparsity` in the first half of the training (Zhu and Gupta, 2017). Then the masks
    stay. Weights have the uniform bits from the first step.

    Args:
        sparsity: float in (0, 1). Share of zeros in each kernel.
        bits: int, 2 to 8. Bits of the weights that stay.
        first_last, weight_decay, overrides: see `_WeightsOnly`.
    """

    def __init__(self, sparsity, bits=2, **kwargs):
        super().__init__(**kwargs)
        self.sparsity = sparsity
        self.bits = bits

    def quantizer(self):
        return MaskedUniform(self.bits)

    def callbacks(self, student, recalibrate):
        return [_PruningRamp(self.sparsity)]

    def get_config(self):
        return {**super().get_config(), "sparsity": self.sparsity, "bits": self.bits}


class _PruningRamp(ProgressCallback):
    """Callback that sets the masks along the ramp, whenever a hundredth has passed."""

    def __init__(self, sparsity):
        super().__init__()
        self.sparsity = sparsity

    def on_progress(self, share):
        if share > RAMP_END + 0.01:
            return
        sparsity = self.sparsity * (1 - max(0.0, 1 - share / RAMP_END) ** 3)
        for layer in quantized_layers(self.model).values():
            if isinstance(layer.kernel_quantizer, MaskedUniform):
                magnitude = np.abs(ops.convert_to_numpy(layer.latent_kernel))
                threshold = np.quantile(magnitude, sparsity)
                keep = (magnitude >= threshold).astype("float32")
                layer.kernel_quantizer.mask.assign(keep)
