"""A callback that follows a training from 0 to 1."""

import keras

from tfcompress.compat import keras_private


class ProgressCallback(keras.callbacks.Callback):
    """Calls `on_progress(share)` as a training goes from 0 to 1.

    The share counts batches where their number is known, else epochs, and is
    reported when it has grown by a hundredth.
    """

    def on_progress(self, share):
        raise NotImplementedError

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.reported = -1
        self._report(epoch / self.params["epochs"])

    def on_train_batch_begin(self, batch, logs=None):
        if self.params["steps"]:
            epoch = self.epoch + batch / self.params["steps"]
            self._report(epoch / self.params["epochs"])

    def _report(self, share):
        if int(100 * share) > self.reported:
            self.reported = int(100 * share)
            self.sync()
            self.on_progress(share)

    def sync(self):
        """Brings the variables up to date, to be read and set here."""
        keras_private.sync_variables(self.model)
