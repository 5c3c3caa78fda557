"""What happens in `fit`: the sparsity ramp and the finish."""

import math

from keras import ops

from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.core.training.progress import ProgressCallback
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Ternary

# Shares of the training at which the sparsity ramp ends and the finish begins.
RAMP_END = 0.5
FINISH = 0.8
# What the learning rate has come down to when the finish ends.
FINISH_LEARNING_RATE = 0.01


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
