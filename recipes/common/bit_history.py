"""What a search for bits and filters stands at, epoch by epoch."""

from recipes.common.history import History
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.schemes.bit_sharing.search_space import SearchSpace


class BitHistory(History):
    """Prints and keeps the choice of a bit-sharing student after each epoch.

    Each of `epochs` has "searching": whether anything was left to choose; "bits":
    `{layer name: [weight bits, activation bits]}`; "kept": `{layer name: [filters kept,
    filters]}` of the gated layers; "bops": of the choice.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._space = SearchSpace(self.model)

    def now(self):
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

    def line(self, now):
        bits = " ".join(f"{weight}/{act}" for weight, act in now["bits"].values())
        kept = " ".join(str(kept) for kept, _ in now["kept"].values())
        ratio = self._space.bops_model.float_bops / now["bops"]
        return f"bits W/A: {bits}  filters: {kept or 'all'}  BOPs: 1/{ratio:.1f}"


def _bits(quantizer):
    return FLOAT_BITS if quantizer is None else quantizer.bits
