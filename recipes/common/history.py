"""State of a search after each epoch: printed, and recorded for a plot."""

import json

import keras


class History(keras.callbacks.Callback):
    """Callback that records and prints the state of a search; base class.

    Subclasses implement `state` and `describe`. `self.model` is the student.

    Args:
        path: `pathlib.Path` of the file that stores the states, in an existing folder.
            An interrupted training goes on with the epochs that are stored there.

    Attributes:
        epochs: list of dicts. The state after each epoch.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs = []

    def state(self):
        """Returns the state of the search: a dict that JSON can hold."""
        raise NotImplementedError

    def describe(self, state):
        """Returns a state as one line of text."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self._unprinted = None
        if self.path.exists():
            self.epochs = json.loads(self.path.read_text())

    def on_epoch_begin(self, epoch, logs=None):
        self._print()

    def on_epoch_end(self, epoch, logs=None):
        state = self.state()
        # A run that was interrupted may have stored later epochs than it backed up.
        self.epochs = [*self.epochs[:epoch], state]
        self.path.write_text(json.dumps(self.epochs))
        # Keras ends the line of its progress bar only after this callback.
        self._unprinted = state

    def on_train_end(self, logs=None):
        self._print()

    def _print(self):
        if self._unprinted is not None:
            print(self.describe(self._unprinted))
            self._unprinted = None
