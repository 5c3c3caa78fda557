"""Callback that reports the progress of a training."""

from typing import Any

import keras

from tfcompress.compat import keras_private


class ProgressCallback(keras.callbacks.Callback):
    """Callback that calls `on_progress(share)` with the share of the training so far.

    The share, from 0 to 1, counts batches if their number is known, else epochs. It is
    reported whenever it has grown by a hundredth.
    """

    def on_progress(self, share: float) -> None:
        """Handles the share of the training that has passed, in [0, 1)."""
        raise NotImplementedError

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch = epoch
        self.reported = -1
        self._report(epoch / self.params["epochs"])

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self.params["steps"]:
            epoch = self.epoch + batch / self.params["steps"]
            self._report(epoch / self.params["epochs"])

    def _report(self, share):
        if int(100 * share) > self.reported:
            self.reported = int(100 * share)
            self.sync()
            self.on_progress(share)

    def sync(self) -> None:
        """Brings the variables up to date, so that callbacks may read and set them."""
        keras_private.sync_variables(self.model)
