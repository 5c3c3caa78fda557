"""State of a search after each epoch: printed, and recorded for a plot."""

import json

import keras
import numpy as np

from recipes.common.saving.files import write_whole
from tfcompress.cost.arithmetic import FLOAT_BITS


class History(keras.callbacks.Callback):
    """Callback that records and prints the state of a search; base class.

    Subclasses implement `state` and `describe`. `self.model` is the student.

    Args:
        path: `pathlib.Path` of the file that stores the states, in an existing folder.
            An interrupted training continues with the epochs that are stored there.

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
            self.epochs = self._read()

    def on_epoch_begin(self, epoch, logs=None):
        self._print()

    def on_epoch_end(self, epoch, logs=None):
        state = self.state()
        # A run that was interrupted may have stored later epochs than it backed up.
        self.epochs = [*self.epochs[:epoch], state]
        write_whole(self.path, json.dumps(self.epochs).encode())
        # Keras ends the line of its progress bar only after this callback.
        self._unprinted = state

    def on_train_end(self, logs=None):
        self._print()

    def _read(self):
        try:
            return json.loads(self.path.read_bytes())
        except ValueError:
            print(f"The history of the search is damaged and skipped: {self.path}")
            return []

    def _print(self):
        if self._unprinted is not None:
            print(self.describe(self._unprinted))
            self._unprinted = None


class BitHistory(History):
    """Callback that records and prints the bits of a bit-sharing student.

    A state has four entries, as `tfcompress.reporting.plot_gates` draws them:

        searching: bool. Whether the search is running.
        bits: dict. Layer name to [weight bits, activation bits].
        kept: dict. Name of a gated layer to [filters kept, filters].
        bops: float. Bit operations of these bits and filters.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._space = self.model.bit_space

    def state(self):
        space = self._space
        return {
            "searching": not space.is_frozen(),
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

    def describe(self, state):
        bits = " ".join(f"{weight}/{act}" for weight, act in state["bits"].values())
        kept = " ".join(str(kept) for kept, _ in state["kept"].values())
        ratio = self._space.bops_model.float_bops / state["bops"]
        return f"bits W/A: {bits}  filters: {kept or 'all'}  BOPs: 1/{ratio:.1f}"


class SizeHistory(History):
    """Callback that records and prints the bits of a size-constrained student.

    A state has six entries, as `tfcompress.reporting.plot_sizes` draws them:

        searching: bool. Whether the search is running.
        bits: dict. Layer name to bits of a code.
        sparsity: dict. Layer name to the share (0-1) of zero weights.
        size: float. Size of these codes, in the budget's unit.
        budget: float. Requested size.
        residual: float or None. Distance |W - V| / |W| of ADMM, while it searches.
    """

    def state(self):
        space = self.model.size_space
        budget, codes = space.allocation.budget, space.codebooks.codes()
        searching = not space.is_frozen()
        return {
            "searching": searching,
            "bits": space.codebooks.bits,
            "sparsity": {
                name: float(np.mean(x == 0)) for name, (x, _) in codes.items()
            },
            "size": float(budget.estimate_of(codes)),
            "budget": float(budget.total),
            "residual": space.admm.residual if searching else None,
        }

    def describe(self, state):
        bits = " ".join(map(str, state["bits"].values()))
        zeros = " ".join(f"{100 * share:.0f}" for share in state["sparsity"].values())
        residual = state["residual"]
        distance = "" if residual is None else f"  |W-V|/|W|: {residual:.3f}"
        return (
            f"bits: {bits}  zeros %: {zeros}  size: {state['size']:,.0f} of "
            f"{state['budget']:,.0f}{distance}"
        )


def _bits(quantizer):
    return FLOAT_BITS if quantizer is None else quantizer.bits
