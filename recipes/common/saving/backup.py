"""State of a training after each epoch, from which a killed run continues."""

import hashlib
import re

import keras

from recipes.common.saving.files import write_whole
from tfcompress.compat import keras_private

# States that are kept: the last one, and one more for where that is damaged.
KEPT = 2
# The name of a file says its epoch and the checksum of its content.
_NAME = re.compile(r"epoch_(\d+)_([0-9a-f]{16})\.weights\.h5")


class Backup(keras.callbacks.Callback):
    """Callback that stores the state of a training after each epoch.

    A state is one file, written aside and renamed. Its name has a checksum of its
    content, so that only whole states are read. A state that cannot be written leaves
    the one before.

    Args:
        folder: `pathlib.Path` of the states of one training; created with the first.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def restore(self, model):
        """Sets a compiled model to the last whole state, and removes damaged ones.

        Returns:
            int. Number of epochs that the state was trained for; 0 if there is none.
        """
        for epoch, path in self._states():
            if not _is_whole(path):
                print(f"A backup of epoch {epoch} is damaged and skipped: {path}")
                path.unlink()
                continue
            if not model.optimizer.built:  # its state is loaded too
                model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
            return epoch
        return 0

    def on_epoch_end(self, epoch, logs=None):
        content = keras_private.weights_file(self.model)
        name = f"epoch_{epoch + 1}_{_checksum(content)}.weights.h5"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, content)
        except OSError as error:
            print(
                f"No backup of epoch {epoch + 1}: {error.strerror} ({self.folder}). "
                "A killed run continues from the one before."
            )
            return
        for _, path in self._states()[KEPT:]:
            path.unlink()

    def _states(self):
        """`(epoch, path)` of the states, the last one first."""
        found = [(_NAME.fullmatch(x.name), x) for x in self.folder.glob("epoch_*")]
        states = [(int(match[1]), path) for match, path in found if match]
        return sorted(states, reverse=True)


def _is_whole(path):
    return _NAME.fullmatch(path.name)[2] == _checksum(path.read_bytes())


def _checksum(content):
    return hashlib.sha256(content).hexdigest()[:16]
