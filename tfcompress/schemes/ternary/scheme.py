"""Pruned ternary quantization as a scheme."""

import math

import keras
from keras import ops

from tfcompress.core.config import KeepFloat, QuantizeConfig
from tfcompress.core.scheme import Scheme
from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.core.training.progress import ProgressCallback
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Ternary, Uniform
from tfcompress.quantizers.ternary import check_sparsity

# Shares of the training at which the sparsity ramp ends and the finish begins.
RAMP_END = 0.5
FINISH = 0.8
# What the learning rate has come down to when the finish ends.
FINISH_LEARNING_RATE = 0.01


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


def ternary_layers(model):
    """The layers of a model, nested ones included, with a `Ternary` kernel."""
    return [
        layer
        for layer in Graph(model).layers().values()
        if isinstance(layer, QuantizedKernel)
        and isinstance(layer.kernel_quantizer, Ternary)
    ]


class TernarySchedule(ProgressCallback):
    """The cubic sparsity ramp, and the frozen zeros of the finish."""

    def on_train_begin(self, logs=None):
        self.layers = ternary_layers(self.model)
        self.start = []
        self.finishing = False
        for layer in self.layers:
            layer.kernel_quantizer.unfreeze()
            current = layer.kernel_quantizer.current_sparsity
            self.start.append(float(ops.convert_to_numpy(current)))

    def on_progress(self, share):
        if self.finishing:
            return
        left = max(0.0, 1.0 - share / RAMP_END) ** 3
        for layer, start in zip(self.layers, self.start, strict=True):
            quantizer = layer.kernel_quantizer
            if quantizer.sparsity is not None:
                target = quantizer.sparsity
                quantizer.current_sparsity.assign(target + (start - target) * left)
        if share >= FINISH:
            self.finishing = True
            for layer in self.layers:
                layer.kernel_quantizer.freeze(
                    ops.convert_to_tensor(layer.latent_kernel)
                )


class LowRateFinish(ProgressCallback):
    """Anneals the learning rate along a cosine from `FINISH` to the end.

    The rate is multiplied, so that other callbacks may change it too, and given
    back when training ends. An optimizer with a schedule is left alone.
    """

    def on_train_begin(self, logs=None):
        self.factor = 1.0
        optimizer = inner_optimizer(self.model)
        rate = optimizer.get_config()["learning_rate"]
        self.optimizer = optimizer if isinstance(rate, float) else None

    def on_progress(self, share):
        if share >= FINISH:
            cosine = math.cos(math.pi * (share - FINISH) / (1.0 - FINISH))
            low = FINISH_LEARNING_RATE
            self._scale_to(low + (1.0 - low) * (1.0 + cosine) / 2.0)

    def on_train_end(self, logs=None):
        self._scale_to(1.0)

    def _scale_to(self, factor):
        if self.optimizer is not None:
            rate = float(ops.convert_to_numpy(self.optimizer.learning_rate))
            self.optimizer.learning_rate = rate * factor / self.factor
            self.factor = factor
