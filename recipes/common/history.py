"""What a search stands at, epoch by epoch: printed, and kept for a plot."""

import json

import keras


class History(keras.callbacks.Callback):
    """Keeps and prints what `now(student)` says after each epoch; base class.

    Subclasses give `now()`, a dictionary that JSON can hold, and `line(now)`, a line of
    text. `self.model` is the student.

    Args:
        path: `pathlib.Path` of a file that keeps it, so that an interrupted training
            goes on with the epochs before. Its folder must exist.

    Attributes:
        epochs: list of dictionaries, one per epoch.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs = []

    def now(self):
        raise NotImplementedError

    def line(self, now):
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self._unprinted = None
        if self.path.exists():
            self.epochs = json.loads(self.path.read_text())

    def on_epoch_begin(self, epoch, logs=None):
        self._print()

    def on_epoch_end(self, epoch, logs=None):
        now = self.now()
        # What a run that was interrupted saw later is no part of this one.
        self.epochs = [*self.epochs[:epoch], now]
        self.path.write_text(json.dumps(self.epochs))
        # Keras ends the line of its progress bar after all callbacks had their turn.
        self._unprinted = now

    def on_train_end(self, logs=None):
        self._print()

    def _print(self):
        if self._unprinted is not None:
            print(self.line(self._unprinted))
            self._unprinted = None
