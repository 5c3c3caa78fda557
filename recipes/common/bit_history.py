"""State of a search for bits and filters after each epoch."""

from recipes.common.history import History
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.schemes.bit_sharing.search_space import SearchSpace


class BitHistory(History):
    """Callback that records and prints the bits of a bit-sharing student.

    A state has four entries, as `tfcompress.reporting.plot_gates` draws them:

        searching: bool. Whether the search goes on.
        bits: dict. Layer name to [weight bits, activation bits].
        kept: dict. Name of a gated layer to [filters kept, filters].
        bops: float. Bit operations of these bits and filters.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._space = SearchSpace(self.model)

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


def _bits(quantizer):
    return FLOAT_BITS if quantizer is None else quantizer.bits
