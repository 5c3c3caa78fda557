"""Single-path bit sharing as a scheme: bits and filters under a BOPs budget."""

import keras

from tfcompress.core.budget import parse_budget
from tfcompress.core.config import learned_range_config
from tfcompress.core.scheme import SearchingScheme
from tfcompress.core.training.calibration import CalibrateActivations, calibrate_weights
from tfcompress.graph.graph import Graph
from tfcompress.quantizers import nested
from tfcompress.schemes.bit_sharing.bops_budget import BopsBudget
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate
from tfcompress.schemes.bit_sharing.filters import Filters
from tfcompress.schemes.bit_sharing.search import BitSearch
from tfcompress.schemes.bit_sharing.search_space import SearchSpace, candidates


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class BitSharing(SearchingScheme):
    """Learns every layer's bits and filters in one model (arXiv 2101.04935).

    Each kernel and each input is quantized on nested grids of 2, 4 and 8 bits; gates
    with learned thresholds choose among them and close groups of filters, at a
    cost in BOPs: MACs * weight bits * activation bits. The first part of a `fit`
    searches, with a penalty that is steered so that the BOPs come down to the budget;
    then the choice is fixed, put right where it misses the budget, and the rest of
    the `fit`, or further ones, fine-tune it. The first and the last layers have 8
    and 8 bits.

    Args:
        bops: the budget: a count, or a share of the float model's (32 x 32 bits) as
            text, such as "1/60". The finished model takes at most that, and at least
            98 % of it wherever a choice of bits does. None for a fixed `penalty`.
        penalty: lambda of the paper's loss, cross-entropy + lambda ln(BOPs), in
            place of a budget.
        weight_bits, activation_bits: candidates, subsets of (2, 4, 8).
        group_size: filters that are kept or removed together; None keeps all.
        max_pruned: share of a layer's groups that may be removed at most.
        search_fraction: share of the first `fit` that searches, in (0, 1].
        grid: of the weights; see `quantizers.BitSharing`.
        weight_decay, overrides: see `Scheme`.

    Example:

    >>> student = tfc.compress(model, tfc.BitSharing(bops="1/60"))
    """

    def __init__(
        self,
        bops=None,
        penalty=None,
        weight_bits=nested.BITS,
        activation_bits=nested.BITS,
        group_size=4,
        max_pruned=0.75,
        search_fraction=0.4,
        grid="symmetric",
        weight_decay=1e-4,
        overrides=None,
    ):
        super().__init__(search_fraction, overrides, weight_decay)
        if (bops is None) == (penalty is None):
            raise ValueError(
                "Either `bops`, a budget, or `penalty`, the weight of ln(BOPs) in the "
                f"loss, is expected. Received: bops={bops!r}, penalty={penalty!r}."
            )
        if bops is not None:
            parse_budget(bops, 1.0, "bops")
        elif not 0 <= penalty < float("inf"):
            raise ValueError(
                f"`penalty` is a finite number >= 0. Received: penalty={penalty}."
            )
        self.bops = bops
        self.penalty = penalty
        self.weight_bits = tuple(weight_bits)
        self.activation_bits = tuple(activation_bits)
        self.group_size = group_size
        self.max_pruned = max_pruned
        self.grid = grid
        # Checks the candidates and the grid.
        learned_range_config(self.weight_bits, self.activation_bits, False, grid)
        if group_size is not None:
            FilterGate("", 1, group_size, max_pruned)  # checks

    def config_for(self, layer, place):
        if place.is_first or place.is_last:
            return learned_range_config(8, 8, place.signed_input, self.grid)
        return learned_range_config(
            self.weight_bits, self.activation_bits, place.signed_input, self.grid
        )

    def check(self, model, plan):
        if self.bops is None:
            return
        bops_model = BopsModel(Graph(model), model)
        budget = parse_budget(self.bops, bops_model.float_bops, "bops")
        bits = {
            row.name: (
                candidates(row.config.kernel_quantizer),
                candidates(row.config.input_quantizer),
            )
            for row in plan.treated()
        }
        gates = self._filter_gates(model, plan)
        kept = {
            name: 1 - gate.most_closed / gate.group_count
            for name, gate in gates.items()
        }
        lowest = bops_model.total(
            {name: (min(w), min(a)) for name, (w, a) in bits.items()}, kept
        )
        highest = bops_model.total(
            {name: (max(w), max(a)) for name, (w, a) in bits.items()}, {}
        )
        if not lowest <= budget <= highest:
            raise ValueError(
                f"A BOPs budget from {lowest:.4g} (lowest bits, most filters removed) "
                f"to {highest:.4g} (highest bits) can be met: 1/"
                f"{bops_model.float_bops / lowest:.1f} to 1/"
                f"{bops_model.float_bops / highest:.1f} of the float model's "
                f"{bops_model.float_bops:.4g}. Received: bops={self.bops!r}, "
                f"{budget:.4g}."
            )

    def notes(self, model, plan):
        if self.group_size is None:
            return {}
        gates = self._filter_gates(model, plan)
        notes = {}
        for name, filters in Filters(Graph(model)).of.items():
            if name in gates:
                gate = gates[name]
                notes[name] = (
                    f"up to {gate.most_closed} of {gate.group_count} groups of "
                    f"{gate.group_size} filters may go"
                )
            elif filters.tied:
                notes[name] = f"filters stay: {filters.tied}"
            elif filters.consumers:
                notes[name] = "filters stay: not quantized"
        return notes

    def layers_before(self, model, plan):
        filters_of = Filters(Graph(model)).of
        before = {}
        for producer, gate in self._filter_gates(model, plan).items():
            for consumer in filters_of[producer].consumers:
                before.setdefault(consumer, []).append(gate)
        # It counts steps by its calls, so a layer that is called once is wanted.
        graph = Graph(model)
        rows = [row for row in plan.treated() if len(graph.calls_of(row.layer)) == 1]
        first = (rows or plan.treated())[0].name
        before.setdefault(first, []).insert(0, BopsBudget(name="bops_budget"))
        return before

    def _filter_gates(self, model, plan):
        """`{producer: FilterGate}` for the filters that may be removed."""
        if self.group_size is None:
            return {}
        treated = {row.name for row in plan.treated()}
        return {
            name: FilterGate(
                name,
                filters.count,
                self.group_size,
                self.max_pruned,
                name=f"{name.replace('/', '_')}_gate",
            )
            for name, filters in Filters(Graph(model)).of.items()
            if name in treated and not filters.tied and filters.consumers
        }

    def connect(self, student):
        SearchSpace(student).connect()

    def prepare(self, student):
        calibrate_weights(student)
        for threshold in SearchSpace(student).activation_thresholds():
            threshold.learns.assign(0.0)  # the weights' gates begin

    def callbacks(self, student, recalibrate):
        search = BitSearch(
            SearchSpace(student),
            recalibrate,
            self.search_fraction,
            bops=self.bops,
            penalty=self.penalty,
        )
        return [CalibrateActivations(recalibrate.batches), search]

    def get_config(self):
        return {
            **super().get_config(),
            "bops": self.bops,
            "penalty": self.penalty,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "group_size": self.group_size,
            "max_pruned": self.max_pruned,
            "grid": self.grid,
        }
