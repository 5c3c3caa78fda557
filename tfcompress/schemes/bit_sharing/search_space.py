"""Search space of bit sharing: all gates of a student, and the BOPs they decide on."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.core.student import Student
from tfcompress.core.training.calibration import quantized_layers
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.cost.input_shape import InputShape
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import BitSharing, BitSharingActivation, Quantizer
from tfcompress.quantizers.bit_sharing import GatedBits
from tfcompress.quantizers.gates import BitGates, expected_bits
from tfcompress.quantizers.threshold import Threshold
from tfcompress.schemes.bit_sharing.bit_allocation import allocate, spend_rest
from tfcompress.schemes.bit_sharing.bops_budget import BopsBudget
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate
from tfcompress.schemes.bit_sharing.learned_gates import (
    BitCandidates,
    FilterGroups,
    LearnedGates,
)
from tfcompress.types import Tensor

# Values of all gates: {"weights": {layer name: array}, "activations": ..., "filters"}.
GateValues = dict[str, dict[str, np.ndarray]]


class SearchSpace:
    """View of a student: the gates of its bits and filters, and their expected BOPs.

    It connects the gates to each other, reads their margins, and freezes them. All
    state is in variables of the student, so any number of views agree.

    Attributes:
        layers: `{name: layer}`. Quantized layers of the student.
        filter_gates: `{layer name: FilterGate}`, by the layer that makes the filters.
        budget: `BopsBudget` of the student.
        bops_model: `BopsModel` of the student.

    Args:
        student: bit-sharing student.
        input_shape: see `BitSharing`.
    """

    def __init__(self, student: Student, input_shape: InputShape | None = None) -> None:
        graph = Graph(student)
        self._named = graph.layers()
        self.layers: dict[str, QuantizedKernel] = quantized_layers(student)
        self.budget: BopsBudget
        (self.budget,) = [x for x in self._named.values() if isinstance(x, BopsBudget)]
        self.filter_gates: dict[str, FilterGate] = {
            x.source: x for x in self._named.values() if isinstance(x, FilterGate)
        }
        self.bops_model = BopsModel(graph, student, input_shape)

    def connect(self) -> None:
        """Connects the filter gates to their layers, and the budget to all gates."""
        for name, gate in self.filter_gates.items():
            gate.connect(self._named[name])
        self.budget.connect(self.expected_bops, self.thresholds())

    def expected_bops(self) -> Tensor:
        """Returns the present BOPs, a float32 scalar, differentiable in thresholds."""
        bits = self._expected_bits()
        kept = {name: gate.kept() for name, gate in self.filter_gates.items()}
        return self.bops_model.total(bits, kept)

    def bit_gates(self) -> Iterator[BitGates]:
        """Yields the gates of each layer's weight bits and activation bits."""
        for layer in self.layers.values():
            for quantizer in (layer.kernel_quantizer, layer.input_quantizer):
                if isinstance(quantizer, GatedBits):
                    yield quantizer.gates

    def searched_weights(self) -> dict[str, BitSharing]:
        """Returns the quantizers of weights with bits to choose, by layer name."""
        quantizers = {n: layer.kernel_quantizer for n, layer in self.layers.items()}
        return {n: q for n, q in quantizers.items() if _threshold(q) is not None}

    def searched_activations(self) -> dict[str, BitSharingActivation]:
        """Returns the quantizers of activations with bits to choose, by layer name."""
        quantizers = {n: layer.input_quantizer for n, layer in self.layers.items()}
        return {n: q for n, q in quantizers.items() if _threshold(q) is not None}

    def mean_bits(self) -> tuple[float, float]:
        """Returns the bits of a weight and of an activation, as means.

        The mean of the weights is over all weights of the quantized layers, and that of
        the activations over the layers.
        """
        sizes = [math.prod(x.latent_kernel.shape) for x in self.layers.values()]
        bits = [
            [float(ops.convert_to_numpy(x)) for x in pair]
            for pair in self._expected_bits().values()
        ]
        weights, activations = np.transpose(bits)
        return (
            float(np.average(weights, weights=sizes)),
            float(np.mean(activations)),
        )

    def _expected_bits(self):
        """`{layer name: (weight bits, activation bits)}`, numbers or scalar tensors."""
        tensors = iter(expected_bits(list(self.bit_gates())))
        return {
            name: tuple(
                next(tensors) if isinstance(q, GatedBits) else candidates(q)[0]
                for q in (layer.kernel_quantizer, layer.input_quantizer)
            )
            for name, layer in self.layers.items()
        }

    def thresholds(self) -> list[Threshold]:
        """Returns the thresholds of all gates."""
        return self.weight_thresholds() + self.activation_thresholds()

    def weight_thresholds(self) -> list[Threshold]:
        """Returns the thresholds of weight bits and of filters."""
        bits = [_threshold(layer.kernel_quantizer) for layer in self.layers.values()]
        filters = [gate.threshold for gate in self.filter_gates.values()]
        return [threshold for threshold in bits + filters if threshold is not None]

    def activation_thresholds(self) -> list[Threshold]:
        """Returns the thresholds of activation bits."""
        bits = [_threshold(layer.input_quantizer) for layer in self.layers.values()]
        return [threshold for threshold in bits if threshold is not None]

    def set_searching(self, searching: bool) -> bool:
        """Tells all gates whether training steps search; returns whether that is new.

        A training step that is already compiled then has to be compiled again.
        """
        parts: list[Any] = [*self.bit_gates(), *self.filter_gates.values()]
        parts.append(self.budget)
        is_new = any(part.is_searching != searching for part in parts)
        for part in parts:
            part.is_searching = searching
        if not searching:
            keras_private.expect_no_gradients(x.raw for x in self.thresholds())
        return is_new

    def is_measured(self) -> bool:
        """Returns whether costs of gates have been set."""
        measured = [x.sensitivities for x in self.filter_gates.values()]
        measured += [x.sensitivities for x in self.bit_gates() if x.threshold]
        return any((ops.convert_to_numpy(x) != 1.0).any() for x in measured)

    def is_frozen(self) -> bool:
        """Returns whether the search of bits and of filters is over."""
        quantizers = [
            quantizer
            for layer in self.layers.values()
            for quantizer in (layer.kernel_quantizer, layer.input_quantizer)
        ]
        return all(q is None or q.unfinished() is None for q in quantizers) and all(
            ops.convert_to_numpy(gate.frozen) > 0 for gate in self.filter_gates.values()
        )

    def margins(self) -> GateValues:
        """Returns the margin of each gate, positive where it is open.

        Returns:
            Dict of "weights" and "activations", `{layer name: array (gates,)}`, and
            "filters", `{layer name: array (groups,)}`.
        """
        return self._values(lambda gates: gates.margins())

    def costs(self) -> GateValues:
        """Returns the present cost of closing each gate, in the form of `margins()`."""
        return self._values(lambda gates: gates.costs())

    def _values(self, value_of):
        def of_bits(quantizer):
            is_gated = isinstance(quantizer, GatedBits)
            return value_of(quantizer.gates) if is_gated else np.zeros(0)

        layers = self._counted()
        return {
            "weights": {name: of_bits(x.kernel_quantizer) for name, x in layers},
            "activations": {name: of_bits(x.input_quantizer) for name, x in layers},
            "filters": {name: value_of(x) for name, x in self.filter_gates.items()},
        }

    def freeze_learned(self, margins: GateValues) -> None:
        """Freezes the bits and filters that the gates have learned.

        Args:
            margins: margins in the form of `margins()`.
        """
        gates = self._gates(margins)
        self._freeze(gates.learned_bits(), gates.learned_groups())

    def freeze_within(self, budget: float, costs: GateValues) -> None:
        """Freezes the allocation that meets a budget at the least cost.

        Args:
            budget: float, in BOPs.
            costs: costs in the form of `costs()`.
        """
        # Gates of no cost are open too: a closed one hides the costs of later ones.
        gates = self._gates(keras.tree.map_structure(_above_zero, costs))
        bits, open_groups, _ = allocate(self.bops_model, gates, budget)
        bits = spend_rest(bits, open_groups, self.bops_model, gates, budget)
        self._freeze(bits, open_groups)

    def _freeze(self, bits, open_groups):
        for name, layer in self.layers.items():
            for i, quantizer in enumerate(
                (layer.kernel_quantizer, layer.input_quantizer)
            ):
                if isinstance(quantizer, GatedBits):
                    present = quantizer.gates
                    present.freeze(bits[name][i] if name in bits else present.bits())
        for name, gate in self.filter_gates.items():
            gate.freeze(open_groups[name])

    def _gates(self, margins: GateValues) -> LearnedGates:
        weights, activations = {}, {}
        for name, layer in self._counted():
            weights[name] = BitCandidates(
                candidates(layer.kernel_quantizer), margins["weights"][name]
            )
            activations[name] = BitCandidates(
                candidates(layer.input_quantizer), margins["activations"][name]
            )
        filters = {
            name: FilterGroups(
                margins["filters"][name], gate.group_sizes(), gate.most_closed
            )
            for name, gate in self.filter_gates.items()
        }
        return LearnedGates(weights, activations, filters)

    def _counted(self):
        """The layers that have MACs."""
        counted = {term.name for term in self.bops_model.terms}
        return [(n, layer) for n, layer in self.layers.items() if n in counted]


def candidates(quantizer: Quantizer | None) -> tuple[int, ...]:
    """Returns the candidate bit-widths of a quantizer; 32 bits for None, float."""
    return (FLOAT_BITS,) if quantizer is None else quantizer.candidates


def _above_zero(costs):
    return np.maximum(costs, 1e-9)


def _threshold(quantizer):
    return quantizer.gates.threshold if isinstance(quantizer, GatedBits) else None
