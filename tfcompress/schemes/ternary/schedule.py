"""Callbacks of pruned ternary quantization: sparsity ramp and low-rate finish."""

import math
from typing import Any

import keras
from keras import ops

from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.core.training.progress import ProgressCallback
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Ternary

# Shares of the training at which the sparsity ramp ends and the finish begins.
RAMP_END = 0.5
FINISH = 0.8
# Factor of the learning rate at the end of the finish.
FINISH_LEARNING_RATE = 0.01


def ternary_layers(model: keras.Model) -> list[QuantizedKernel]:
    """Returns the layers with a `Ternary` kernel, those of nested models included."""
    return [
        layer
        for layer in Graph(model).layers().values()
        if isinstance(layer, QuantizedKernel)
        and isinstance(layer.kernel_quantizer, Ternary)
    ]


class TernarySchedule(ProgressCallback):
    """Callback that raises the sparsity along a cubic ramp, then freezes the zeros.

    The ramp starts at the present sparsity of each layer and ends at `RAMP_END`. From
    `FINISH` on the keep masks are frozen. In a single epoch of unknown length both
    happen at its end.

    Args:
        recalibrate: `Recalibration` of the student.
    """

    def __init__(self, recalibrate: Recalibration) -> None:
        super().__init__()
        self.recalibrate = recalibrate

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.layers = ternary_layers(self.model)
        self.start: list[float] = []
        self.finishing = False
        for layer in self.layers:
            layer.kernel_quantizer.unfreeze()
            current = layer.kernel_quantizer.current_sparsity
            self.start.append(float(ops.convert_to_numpy(current)))

    def on_progress(self, share: float) -> None:
        if self.finishing:
            return
        remaining = max(0.0, 1.0 - share / RAMP_END) ** 3
        for layer, start in zip(self.layers, self.start, strict=True):
            quantizer = layer.kernel_quantizer
            if quantizer.sparsity is not None:
                target = quantizer.sparsity
                quantizer.current_sparsity.assign(target + (start - target) * remaining)
        if share >= FINISH:
            self.finishing = True
            for layer in self.layers:
                layer.kernel_quantizer.freeze(
                    ops.convert_to_tensor(layer.latent_kernel)
                )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        was_finishing = self.finishing
        super().on_train_end(logs)
        if self.layers and self.finishing and not was_finishing:
            self.warn_untrained("The zeros were frozen")
            self.recalibrate()


class LowRateFinish(ProgressCallback):
    """Callback that anneals the learning rate along a cosine from `FINISH` to the end.

    It multiplies the rate, so that other callbacks may change it too. At the end of
    the training the factor is removed. An optimizer with a schedule is left alone.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.factor = 1.0
        optimizer = inner_optimizer(self.model)
        rate = optimizer.get_config()["learning_rate"]
        self.optimizer = optimizer if isinstance(rate, float) else None

    def on_progress(self, share: float) -> None:
        if share >= FINISH:
            cosine = math.cos(math.pi * (share - FINISH) / (1.0 - FINISH))
            low = FINISH_LEARNING_RATE
            self._scale_to(low + (1.0 - low) * (1.0 + cosine) / 2.0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._scale_to(1.0)

    def _scale_to(self, factor: float) -> None:
        if self.optimizer is not None:
            rate = float(ops.convert_to_numpy(self.optimizer.learning_rate))
            self.optimizer.learning_rate = rate * factor / self.factor
            self.factor = factor
