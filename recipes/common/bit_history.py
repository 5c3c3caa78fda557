"""What a search for bits and filters stands at, epoch by epoch."""

import json

import keras

from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.schemes.search_space import SearchSpace


class BitHistory(keras.callbacks.Callback):
    """Prints and keeps the choice of a bit-sharing student after each epoch.

    Args:
        path: `pathlib.Path` of a file that keeps it, so that an interrupted training
            goes on with the epochs before. Its folder must exist.

    Attributes:
        epochs: list of dictionaries, one per epoch:
            "searching": whether anything was left to choose;
            "bits": `{layer name: [weight bits, activation bits]}`;
            "kept": `{layer name: [filters kept, filters]}` of the gated layers;
            "bops": of the choice.
    """

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.epochs = []

    def on_train_begin(self, logs=None):
        self._space = SearchSpace(self.model)
        self._unprinted = None
        if self.path.exists():
            self.epochs = json.loads(self.path.read_text())

    def on_epoch_begin(self, epoch, logs=None):
        self._print()

    def on_epoch_end(self, epoch, logs=None):
        now = self._now()
        # What a run that was interrupted saw later is no part of this one.
        self.epochs = [*self.epochs[:epoch], now]
        self.path.write_text(json.dumps(self.epochs))
        # Keras ends the line of its progress bar after all callbacks had their turn.
        self._unprinted = now

    def on_train_end(self, logs=None):
        self._print()

    def _print(self):
        if self._unprinted is not None:
            print(self._line(self._unprinted))
            self._unprinted = None

    def _now(self):
        space = self._space
        return {
            "searching": not space.is_fixed(),
            "bits": {
                name: [_bits(layer.kernel_quantizer), _bits(layer.input_quantizer)]
                for name, layer in space.layers.items()
            },
            "kept": {
                name: [len(gate.open_channels()), gate.filters]
                for name, gate in space.filter_gates.items()
            },
            "bops": float(space.expected_bops()),
        }

    def _line(self, now):
        bits = " ".join(f"{weight}/{act}" for weight, act in now["bits"].values())
        kept = " ".join(str(kept) for kept, _ in now["kept"].values())
        ratio = self._space.bops_model.float_bops / now["bops"]
        return f"bits W/A: {bits}  filters: {kept or 'all'}  BOPs: 1/{ratio:.1f}"


def _bits(quantizer):
    return FLOAT_BITS if quantizer is None else quantizer.bits
