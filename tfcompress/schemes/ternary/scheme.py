"""Pruned ternary quantization as a scheme."""

import keras

from tfcompress.core.config import KeepFloat, QuantizeConfig
from tfcompress.core.scheme import Scheme
from tfcompress.quantizers import Ternary, Uniform
from tfcompress.quantizers.ternary import check_sparsity
from tfcompress.schemes.ternary.schedule import (
    LowRateFinish,
    TernarySchedule,
    ternary_layers,
)


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class PrunedTernary(Scheme):
    """Ternary weights by L2 normalisation and pruning (arXiv 2107.10998).

    Every convolution and dense kernel becomes {-a, 0, a} with one scale a per
    output channel. Half of each `fit` raises the sparsity along a cubic ramp
    from what the best cosine gives to what is asked for; the last fifth freezes
    which weights are zero and anneals the learning rate to a hundredth, unless
    the optimizer follows a schedule of its own.

    Args:
        sparsity: share of zeros in each ternary kernel, in (0, 1): the size
            knob. None takes the best cosine per filter, about 0.45.
        first_last: what the first and the last layers become: "8bit" uniform
            codes, "ternary" as all others, or "float".
        weight_decay: L2 penalty on the kernels, see `Scheme`. With normalised
            weights it sets the pace at which directions change.
        discrepancy: weight of the loss `mean(1 - cos)` between float and ternary
            filters, summed over layers.
        overrides: treatment by layer name, see `Scheme`.

    Example:

    >>> student = tfc.compress(model, tfc.PrunedTernary(sparsity=0.9))
    """

    def __init__(
        self,
        sparsity=None,
        first_last="8bit",
        weight_decay=1e-4,
        discrepancy=0.0,
        overrides=None,
    ):
        super().__init__(overrides, weight_decay)
        check_sparsity(sparsity)
        if first_last not in ("8bit", "ternary", "float"):
            raise ValueError(
                "`first_last` is '8bit', 'ternary' or 'float'. Received: "
                f"first_last={first_last!r}."
            )
        self.sparsity = sparsity
        self.first_last = first_last
        self.discrepancy = discrepancy
        self.ternary = QuantizeConfig(Ternary(sparsity, discrepancy))

    def config_for(self, layer, place):
        if self.first_last == "ternary" or not (place.is_first or place.is_last):
            return self.ternary
        if self.first_last == "8bit":
            return QuantizeConfig(Uniform(8))
        return KeepFloat("first or last layer, first_last='float'")

    def prepare(self, student):
        """Starts each sparsity ramp where the best cosine cuts the kernel."""
        for layer in ternary_layers(student):
            quantizer = layer.kernel_quantizer
            if quantizer.sparsity is not None:
                natural = quantizer.natural_sparsity(layer.latent_kernel)
                quantizer.current_sparsity.assign(natural)

    def callbacks(self, student, recalibrate):
        return [TernarySchedule(), LowRateFinish()]

    def get_config(self):
        return {
            **super().get_config(),
            "sparsity": self.sparsity,
            "first_last": self.first_last,
            "discrepancy": self.discrepancy,
        }
