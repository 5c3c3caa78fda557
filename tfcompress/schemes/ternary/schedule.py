"""Callbacks of pruned ternary quantization: sparsity ramp and low-rate finish."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.learning_rate import constant_rate, inner_optimizer
from tfcompress.core.training.progress import ProgressCallback
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.core.training.user_callbacks import RunLast
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Ternary

# Steps that share their thresholds, for a step to be without a sort.
REFRESH_STEPS = 8
# Shares of the training at which the sparsity ramp ends, the low-rate finish begins,
# and the zeros are frozen.
RAMP_END = 0.5
FINISH = 0.8
FREEZE = 0.97
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

    The ramp starts at the present sparsity of each layer and ends at `RAMP_END`.
    Thresholds follow it, and the weights, every `REFRESH_STEPS` steps. Without a
    sparsity there is no ramp, and thresholds follow the weights in each step. From
    `FREEZE` on, and at the latest in the last step, the keep masks are frozen. In a
    single epoch of unknown length both happen at its end. A training that was restored
    from a file, and starts at a later epoch, continues the ramp of the interrupted one.

    Args:
        recalibrate: `Recalibration` of the student.
    """

    def __init__(self, recalibrate: Recalibration) -> None:
        super().__init__()
        self.recalibrate = recalibrate

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.layers = ternary_layers(self.model)
        self.is_pruned = any(x.kernel_quantizer.sparsity for x in self.layers)
        self.start: list[float] = []
        self.began = self.ramped = self.frozen = False
        self.refreshed = 0  # step of the epoch
        self.model.search = None

    def state(self) -> dict[str, np.ndarray]:
        return {"ramp_start": np.array(self.start)}

    def _begin(self, share):
        # Not in `on_train_begin`, where a later callback restores a backup.
        restored = self.take_restored(share)
        self.model.search = self
        self.began = True
        if share < FREEZE:
            for layer in self.layers:
                layer.kernel_quantizer.unfreeze()
        if "ramp_start" in restored:
            self.start = [float(sparsity) for sparsity in restored["ramp_start"]]
            return
        for layer in self.layers:
            current = layer.kernel_quantizer.current_sparsity
            self.start.append(float(ops.convert_to_numpy(current)))

    def on_progress(self, share: float) -> None:
        if not self.began:
            self._begin(share)
        if self.frozen:
            return
        remaining = max(0.0, 1.0 - share / RAMP_END) ** 3
        self.frozen = share >= FREEZE or (not remaining and self._steps_left(share) < 2)
        for layer, start in zip(self.layers, self.start, strict=True):
            quantizer = layer.kernel_quantizer
            if quantizer.sparsity is not None:
                target = quantizer.sparsity
                quantizer.current_sparsity.assign(target + (start - target) * remaining)
            if self.frozen:
                quantizer.freeze(layer.latent_kernel)
        if not remaining and not self.ramped:
            self.ramped = True
            self._refresh()

    def _steps_left(self, share):
        """Steps until the end, rounded; infinite if their number is not known."""
        if not self.steps_per_epoch:
            return np.inf
        return round((1.0 - share) * self.params["epochs"] * self.steps_per_epoch)

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_train_batch_begin(batch, logs)
        # Several steps may be taken at once, so that not all numbers are seen.
        is_due = batch == 0 or batch - self.refreshed >= REFRESH_STEPS
        if is_due and not self.frozen:
            self.refreshed = batch
            self._refresh()

    def _refresh(self):
        self.sync()
        for layer in self.layers:
            layer.kernel_quantizer.refresh(layer.latent_kernel)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        was_frozen, was_ramped = self.frozen, self.ramped
        is_over = not self.began and self.params["epochs"] and self.model.restored
        if is_over:
            self.on_progress(1.0)  # from a backup of the last epoch
        else:
            super().on_train_end(logs)
        self.model.search = None
        if self.frozen and not was_frozen and self.is_pruned:
            if not was_ramped and not is_over:
                self.warn_untrained("The sparsity was reached")
            self.recalibrate()


class LowRateFinish(ProgressCallback):
    """Callback that anneals the learning rate along a cosine from `FINISH` to the end.

    Each step takes place at a share of the rate, and the rate is restored after it. So
    other callbacks read and set the rate without that share. An optimizer with a
    schedule is left alone.

    Attributes:
        scaling: the part of it that runs after the user's callbacks.
        factor: float in (0, 1]. Present share of the learning rate.
    """

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.scaling = _ScaleRate(self)
        self._rates: tuple[float, float] | None = None  # before and after scaling

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.factor = 1.0
        self._rates = None
        optimizer = inner_optimizer(self.model)
        is_constant = constant_rate(optimizer) is not None
        self.optimizer = optimizer if is_constant else None

    def on_progress(self, share: float) -> None:
        if share >= FINISH:
            cosine = math.cos(math.pi * (share - FINISH) / (1.0 - FINISH))
            low = FINISH_LEARNING_RATE
            self.factor = low + (1.0 - low) * (1.0 + cosine) / 2.0

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_train_batch_end(batch, logs)
        self._restore()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._restore()

    def on_interrupt(self) -> None:
        self._restore()

    def scale(self) -> None:
        """Scales the learning rate for one step."""
        if self.factor < 1.0 and self.optimizer is not None:
            self.sync()
            before = self._rate()
            self.optimizer.learning_rate = before * self.factor
            self._rates = before, self._rate()

    def _restore(self):
        if self._rates is not None:
            self.sync()
            before, after = self._rates
            if self._rate() == after:  # else the user has set another one
                self.optimizer.learning_rate = before
            self._rates = None

    def _rate(self):
        return float(ops.convert_to_numpy(self.optimizer.learning_rate))


class _ScaleRate(RunLast):
    """Callback that scales the learning rate, once other callbacks have set it."""

    def __init__(self, finish: LowRateFinish) -> None:
        super().__init__()
        self.finish = finish

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.finish.scale()
