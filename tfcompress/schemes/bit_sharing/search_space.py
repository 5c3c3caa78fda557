"""What a bit-sharing student can choose from, and what its gates say now."""

import numpy as np

from tfcompress.core.training.calibration import quantized_layers
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.graph.graph import Graph
from tfcompress.quantizers import BitSharing, BitSharingActivation
from tfcompress.schemes.bit_sharing.bit_allocation import Gated, choose, fill
from tfcompress.schemes.bit_sharing.bops_budget import BopsBudget
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate


class SearchSpace:
    """The gates of a student and the cost that they decide on.

    Attributes:
        layers: `{name: layer}` of the student's quantized layers.
        filter_gates: `{name of the layer whose filters it judges: FilterGate}`.
        budget: the `BopsBudget`.
        bops_model: the `BopsModel`.
    """

    def __init__(self, student):
        graph = Graph(student)
        named = graph.layers()
        self._named = named
        self.layers = quantized_layers(student)
        (self.budget,) = [x for x in named.values() if isinstance(x, BopsBudget)]
        self.filter_gates = {
            x.source: x for x in named.values() if isinstance(x, FilterGate)
        }
        self.bops_model = BopsModel(graph, student)

    def connect(self):
        """Ties the filter gates to their layers and the budget to all gates."""
        for name, gate in self.filter_gates.items():
            gate.connect(self._named[name])
        self.budget.connect(self.expected_bops, self.thresholds())

    def expected_bops(self):
        """BOPs now, a float32 scalar tensor, differentiable in the thresholds."""
        bits = {
            name: (
                _expected_bits(layer.kernel_quantizer),
                _expected_bits(layer.input_quantizer),
            )
            for name, layer in self.layers.items()
        }
        kept = {name: gate.kept() for name, gate in self.filter_gates.items()}
        return self.bops_model.total(bits, kept)

    def thresholds(self):
        """The `Threshold`s of all gates."""
        return self.weight_thresholds() + self.activation_thresholds()

    def weight_thresholds(self):
        """The `Threshold`s of weight bits and of filters."""
        quantizers = [layer.kernel_quantizer for layer in self.layers.values()]
        own = [gate.threshold for gate in self.filter_gates.values()]
        return _thresholds(quantizers) + own

    def activation_thresholds(self):
        """The `Threshold`s of activation bits."""
        return _thresholds(layer.input_quantizer for layer in self.layers.values())

    def is_frozen(self):
        """Whether nothing is left to choose."""
        quantizers = [
            quantizer
            for layer in self.layers.values()
            for quantizer in (layer.kernel_quantizer, layer.input_quantizer)
        ]
        return all(q is None or q.unfinished() is None for q in quantizers)

    def margins(self):
        """By how much each gate is open (positive) or closed.

        Returns:
            Dict of "weights" and "activations", `{layer name: array (gates,)}`, and
            "filters", `{layer name: array (groups,)}`.
        """
        return {
            "weights": {n: _margins(x.kernel_quantizer) for n, x in self._counted()},
            "activations": {n: _margins(x.input_quantizer) for n, x in self._counted()},
            "filters": {n: gate.margins() for n, gate in self.filter_gates.items()},
        }

    def _counted(self):
        counted = {term.name for term in self.bops_model.terms}
        return [(n, layer) for n, layer in self.layers.items() if n in counted]

    def freeze(self, margins, budget=None):
        """Ends the search with what the gates say, put right to meet the budget.

        Args:
            margins: as `margins()` returns them.
            budget: in BOPs; None takes the gates as they are.
        """
        weights, activations = {}, {}
        for name, layer in self._counted():
            weights[name] = Gated(
                candidates(layer.kernel_quantizer), margins["weights"][name]
            )
            activations[name] = Gated(
                candidates(layer.input_quantizer), margins["activations"][name]
            )
        filters = {
            name: (margins["filters"][name], gate.group_sizes(), gate.most_closed)
            for name, gate in self.filter_gates.items()
        }
        known = self.bops_model, weights, activations, filters
        bits, open_groups, _ = choose(*known, budget)
        if budget is not None:
            bits = fill(bits, *known, open_groups, budget)
        for name, layer in self.layers.items():
            for i, quantizer in enumerate(
                (layer.kernel_quantizer, layer.input_quantizer)
            ):
                if isinstance(quantizer, (BitSharing, BitSharingActivation)):
                    gates = quantizer.gates
                    gates.freeze(bits[name][i] if name in bits else gates.bits())
        for name, gate in self.filter_gates.items():
            gate.freeze(open_groups[name])


def candidates(quantizer):
    """The bit-widths that a quantizer, or None for float, chooses from: a tuple."""
    return (FLOAT_BITS,) if quantizer is None else quantizer.candidates


def _margins(quantizer):
    if isinstance(quantizer, (BitSharing, BitSharingActivation)):
        return quantizer.gates.margins()
    return np.zeros(0)


def _expected_bits(quantizer):
    if isinstance(quantizer, (BitSharing, BitSharingActivation)):
        return quantizer.gates.expected_bits()
    return candidates(quantizer)[0]


def _thresholds(quantizers):
    gates = [getattr(quantizer, "gates", None) for quantizer in quantizers]
    return [gate.threshold for gate in gates if gate is not None and gate.threshold]
