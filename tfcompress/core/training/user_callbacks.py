"""Callbacks of the user, in a training that compresses.

Most run as they are. Those that choose the best epoch, stop the training, or lower the
learning rate, compare epochs by a metric. Metrics get worse while a scheme compresses,
so that the best epoch may be one that does not meet the budget. Such callbacks see no
epoch before the compression is finished.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras.callbacks import Callback

from tfcompress.core.checks import is_finite
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.progress_bar import announced

if TYPE_CHECKING:
    from tfcompress.core.student import Student


_HOOKS = [
    f"on_{part}_{side}"
    for part in (
        *("train", "epoch", "train_batch", "test", "test_batch"),
        *("predict", "predict_batch", "batch"),
    )
    for side in ("begin", "end")
]


class RunLast(Callback):
    """Callback of a scheme that runs after the user's callbacks, not before them."""


def arranged(
    own: Sequence[Callback], recalibrate: Recalibration, user: Sequence[Callback]
) -> list[Callback]:
    """Returns the callbacks of a `fit` in their order.

    Args:
        own: callbacks of the student and its scheme.
        recalibrate: `Recalibration` of the student.
        user: callbacks of the user.
    """
    report = ReportCompression()
    follow = [x.on_averaged for x in own if hasattr(x, "on_averaged")]
    first: list[Callback] = []
    later: list[Callback] = []
    for callback in user:
        if isinstance(callback, keras.callbacks.SwapEMAWeights):
            swap = _SwapAverages(callback, recalibrate, follow)
            first.append(_SwapBack(swap))
            later.append(swap)
        elif _compares_epochs(callback):
            later.append(_Deferred(callback, report))
        else:
            later.append(callback)
    before = [callback for callback in own if not isinstance(callback, RunLast)]
    last = [callback for callback in own if isinstance(callback, RunLast)]
    return [*first, *before, report, *later, *last]


def _compares_epochs(callback: Callback) -> bool:
    kinds = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)
    # Any callback that saves can have the attribute, such as `OrbaxCheckpoint`.
    return isinstance(callback, kinds) or getattr(callback, "save_best_only", False)


def warn_if_unmet(student: "Student") -> None:
    """Warns if a trained student does not meet the goal of its scheme."""
    if student.scheme is None:
        return
    # Costs of weights that are NaN mean nothing.
    reason: str | None = "its weights are NaN or infinite"
    if is_finite(student):
        with announced("Measurements of the student"):
            reason = student.scheme.unmet(student)
    if reason is not None:
        warnings.warn(
            f"The student does not meet the goal of its scheme: {reason}. The "
            "training may have been stopped early or have diverged, or a callback may "
            "have set weights of an epoch whose `logs['phase']` was 0. Train it again.",
            stacklevel=3,
        )


class ReportCompression(Callback):
    """Callback that adds the scheme's measurements to the logs of each epoch.

    Attributes:
        is_finished: bool. Whether the compression was finished at the end of the last
            epoch.
    """

    is_finished = False
    model: "Student"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.is_finished = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, value in self.measure().items():
            if logs is not None:
                logs.setdefault(name, float(value))

    def measure(self) -> dict[str, float]:
        """Returns the scheme's measurements, and updates `is_finished`."""
        student = self.model
        with (
            announced("Measurements of the student"),
            np.errstate(invalid="ignore"),  # of a training that diverged
        ):
            measured = student.scheme.measure(student) if student.scheme else {}
        self.is_finished = measured.get("phase", 1.0) == 1.0
        return measured


class _Around(Callback):
    """Callback that passes all calls on to another one; base class."""

    def __init__(self, callback: Callback, but: Sequence[str]) -> None:
        super().__init__()
        self.callback = callback
        for hook in _HOOKS:
            if hook not in but:
                setattr(self, hook, getattr(callback, hook))

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callback.set_model(model)


class _Deferred(_Around):
    """Callback that sees the ends of epochs only once the compression is finished.

    A training whose last epoch was not seen, because the compression ended after it,
    shows it at its end.
    """

    def __init__(self, callback: Callback, report: ReportCompression) -> None:
        super().__init__(
            callback, ("on_epoch_end", "on_train_batch_end", "on_train_end")
        )
        self.report = report

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.last = None if self.report.is_finished else (epoch, logs)
        if self.report.is_finished:
            self.callback.on_epoch_end(epoch, logs)
        elif isinstance(self.callback, keras.callbacks.ReduceLROnPlateau):
            # It logs the rate of every epoch.
            rate = getattr(self.model.optimizer, "learning_rate", None)
            if rate is not None and logs is not None:
                logs["learning_rate"] = float(keras.ops.convert_to_numpy(rate))

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self.report.is_finished:
            self.callback.on_train_batch_end(batch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        last, self.last = self.last, None
        if last is not None:
            self.report.measure()
            if self.report.is_finished:
                self.callback.on_epoch_end(*last)
        self.callback.on_train_end(logs)

    last: tuple[int, dict[str, Any] | None] | None = None


class _SwapAverages(_Around):
    """`SwapEMAWeights`, with batch normalization recalibrated after each swap.

    Averages come back at the beginning of an epoch, by `_SwapBack`.
    """

    def __init__(
        self,
        callback: Callback,
        recalibrate: Recalibration,
        follow: Sequence[Callable[[], None]],
    ) -> None:
        super().__init__(
            callback,
            ("on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end"),
        )
        self.recalibrate = recalibrate
        self.follow = follow

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._swap(lambda: self.callback.on_epoch_end(epoch, logs))
        if self.callback.swap_on_epoch:
            for follow in self.follow:
                follow()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._swap(lambda: self.callback.on_test_begin(logs))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self.callback.on_test_end(logs)
        self.recalibrate.stale = True  # the end of the epoch recalibrates

    def _swap(self, swap: Callable[[], None]) -> None:
        swap()
        self.recalibrate.stale = True
        self.recalibrate.refresh()


class _SwapBack(Callback):
    """Callback that swaps averages back before those of the scheme see the weights."""

    def __init__(self, swap: _SwapAverages) -> None:
        super().__init__()
        self.swap = swap

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.swap.callback.on_epoch_begin(epoch, logs)
