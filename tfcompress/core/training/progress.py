"""Callback that reports the progress of a training."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import training_model

# Key of the number of steps of an epoch in a saved state.
STEPS = "steps_per_epoch"
# Reports of the progress of a training, or of the part of it that a callback acts in.
REPORTS = 100


class ProgressCallback(keras.callbacks.Callback):
    """Callback that calls `on_progress(share)` with the share of the training so far.

    The share, from 0 to 1, counts batches if their number is known. Otherwise the first
    epoch counts as a whole, and its batches are counted for the epochs after it. The
    share is reported `reports` times at most. It is 1 at the end of a training that was
    not stopped early.

    Attributes:
        reports: float. Reports in a whole training; a step has one at most.
    """

    reports: float = REPORTS
    _epoch = -1
    _batches = 0  # of this epoch, so far
    _counted: int | None = None
    _whole: int | None = None  # batches of the last epoch that has ended

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of batches of an epoch: int, or None if it is not known yet."""
        return (
            self.params["steps"]
            or getattr(self.model, "counted_steps", None)
            or self._counted
        )

    def on_progress(self, share: float) -> None:
        """Handles the share of the training that has passed, in [0, 1]."""
        raise NotImplementedError

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._counted = self._batches or self._counted
        self._batches = 0
        self._epoch = epoch
        self._reported = -1
        self._report(epoch / self.params["epochs"])

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        steps = self.steps_per_epoch
        if steps and batch < steps:
            epoch = self._epoch + batch / steps
            self._report(epoch / self.params["epochs"])

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._batches = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._whole = self._batches or None

    def state(self) -> dict[str, Any]:
        """Returns the arrays and numbers that this training needs to be continued.

        Those that no variable holds. `Student` saves them with the weights.
        """
        return {}

    def training_state(self) -> dict[str, Any]:
        """Returns `state`, with the number of steps of an epoch once it is known."""
        steps = self.steps_per_epoch or self._whole
        return {**self.state(), **({STEPS: steps} if steps else {})}

    def take_restored(self, share: float) -> dict[str, Any]:
        """Returns the state that the model was restored with, and forgets it there.

        It is empty in a training that starts from its first epoch.

        Args:
            share: float. Share of the training that has passed.
        """
        restored, self.model.restored = dict(self.model.restored), {}
        if not share:
            return {}
        steps = int(restored.pop(STEPS, 0))
        if steps and not self.steps_per_epoch:
            self.model.counted_steps = steps
        return restored

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        stopped = getattr(training_model(self.model), "stop_training", False)
        if self._epoch + 1 >= self.params["epochs"] and not stopped:
            self.sync()
            self.on_progress(1.0)

    def _report(self, share):
        count = int(self.reports * share)
        if count > self._reported:
            self._reported = count
            self.sync()
            self.on_progress(share)

    def on_interrupt(self) -> None:
        """Undoes temporary changes, in a training that an exception ended."""

    def sync(self) -> None:
        """Brings the variables up to date, so that callbacks may read and set them."""
        keras_private.sync_variables(training_model(self.model))

    def warn_untrained(self, event: str) -> None:
        """Warns of an event at the end of the training that training should follow.

        Args:
            event: str. The event, a clause.
        """
        hint = ""
        if not self.steps_per_epoch:
            hint = (
                " The number of steps per epoch was not known before: give `fit` "
                "`steps_per_epoch`, or train for more epochs."
            )
        warnings.warn(
            f"{event} at the end of the training, and nothing was trained after it."
            + hint,
            stacklevel=2,
        )


@contextlib.contextmanager
def restored_if_interrupted(
    callbacks: Sequence[keras.callbacks.Callback],
) -> Iterator[None]:
    """Calls `on_interrupt` of callbacks if a training in a `with` does not complete.

    Keras calls `on_train_end` of completed ones only.

    Args:
        callbacks: callbacks of the training; those of other classes are left alone.
    """
    try:
        yield
    except BaseException:  # interruptions from the keyboard count
        interrupt(callbacks)
        raise


def interrupt(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Calls `on_interrupt` of those callbacks that have it."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback):
            callback.on_interrupt()
