"""Scheme of single-path bit sharing: bits and filters under a BOPs budget."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.arguments import check_number
from tfcompress.core.budget import at_least, at_most, check_sizes_known, parse_budget
from tfcompress.core.config import KeepFloat, QuantizeConfig, learned_range_config
from tfcompress.core.plan import Plan
from tfcompress.core.scheme import Place, SearchingScheme
from tfcompress.core.student import Student
from tfcompress.core.training.calibration import CalibrateActivations, calibrate_weights
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.cost.input_shape import InputShape, parse_input_shape
from tfcompress.quantizers import nested
from tfcompress.quantizers.bit_sharing import check_candidates
from tfcompress.schemes.bit_sharing.bops_budget import BopsBudget
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate, check_share
from tfcompress.schemes.bit_sharing.filters import Filters
from tfcompress.schemes.bit_sharing.search import BitSearch
from tfcompress.schemes.bit_sharing.search_space import SearchSpace, candidates


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class BitSharing(SearchingScheme):
    """Scheme that learns all layers' bits and filters in one model (arXiv 2101.04935).

    Each kernel and each input is quantized on grids of several bits, in the paper 2, 4
    and 8. Gates with learned thresholds choose among the grids and close groups of
    filters, at a cost in BOPs: MACs * weight bits * activation bits. The first and the
    last layers have 8-bit weights and 8-bit activations, unless they are searched.

    A `fit` first measures the cost of closing each gate, the change of the outputs. Its
    first part searches, with a penalty that brings the BOPs down to the budget. Then
    bits and filters freeze at the allocation of the least cost that meets the budget;
    with a constant penalty, as the gates learned. The rest of the `fit`, or further
    ones, fine-tune.

    The logs of each epoch have "bops"; "budget_ratio", these divided by the budget;
    "mean_weight_bits" and "mean_activation_bits" of the quantized layers; and "phase",
    1 once the search has ended, else 0.

    Args:
        bops: int, float or str. Budget: a count of BOPs, or a share of the float
            model's (32 x 32 bits) as text, such as "1/60". The finished model takes at
            most that, and at least 98 % of it wherever an allocation does.
        penalty: float. Lambda of the paper's loss, cross-entropy + lambda ln(BOPs), in
            place of a budget.
        weight_bits, activation_bits: ints. Candidates, some of 2 to 8.
        group_size: int or None. Filters that are kept or removed together. None keeps
            all filters.
        max_pruned: float in [0, 1). Share of a layer's groups that may be removed.
        search_fraction: float in [0, 1]. Share of the first `fit` that searches. With 0
            and a budget nothing is searched: the allocation of the least cost freezes
            before the first step, and no step has gates.
        grid: str. Grid of the weights; see `quantizers.BitSharing`.
        input_shape: tuple of ints without the batch axis, such as (224, 224, 3). Size
            at which a model of free input sizes is counted; it still takes inputs of
            any size. For several inputs a list of these in their order, or a dict by
            their names.
        first_last: str. "8bit" for 8 bits in the first and the last layers, "searched"
            for the candidates in them too, but for 8 bits in the inputs of the first.
            At budgets near those of 2 bits, 8 bits there are a large part of the BOPs.
        weight_decay, overrides: see `Scheme`.

    Raises:
        ValueError: if an argument is out of its range, or not exactly one of `bops` and
            `penalty` is given.

    Example:

    >>> student = tfc.compress(model, tfc.BitSharing(bops="1/60"))
    """

    def __init__(
        self,
        bops: float | str | None = None,
        penalty: float | None = None,
        weight_bits: Sequence[int] = nested.BITS,
        activation_bits: Sequence[int] = nested.BITS,
        group_size: int | None = 4,
        max_pruned: float = 0.75,
        search_fraction: float = 0.4,
        grid: str = "symmetric",
        weight_decay: float = 1e-4,
        overrides: Mapping[str, KeepFloat | QuantizeConfig] | None = None,
        input_shape: InputShape | None = None,
        first_last: str = "8bit",
    ) -> None:
        may_skip = bops is not None
        super().__init__(search_fraction, overrides, weight_decay, may_skip)
        if (bops is None) == (penalty is None):
            raise ValueError(
                "Either `bops`, a budget, or `penalty`, the weight of ln(BOPs) in the "
                f"loss, is expected. Received: bops={bops!r}, penalty={penalty!r}."
            )
        if bops is not None:
            parse_budget(bops, 1.0, "bops")
        elif penalty is not None:
            check_number(
                "penalty", penalty, "a number from 0 to 1e6", lambda x: 0 <= x <= 1e6
            )
        self.bops = bops
        self.penalty = penalty
        self.weight_bits = check_candidates(weight_bits, "weight_bits")
        self.activation_bits = check_candidates(activation_bits, "activation_bits")
        self.group_size = group_size
        self.max_pruned = max_pruned
        self.grid = grid
        self.input_shape = parse_input_shape(input_shape)
        if first_last not in ("8bit", "searched"):
            raise ValueError(
                "`first_last` is '8bit' or 'searched'. Received: "
                f"first_last={first_last!r}."
            )
        self.first_last = first_last
        # Of all layers by candidates and sign; each layer has copies of quantizers.
        self._configs = {
            (weight_bits, activation_bits, signed): learned_range_config(
                weight_bits, activation_bits, signed, grid
            )
            for weight_bits in ((8,), self.weight_bits)
            for activation_bits in ((8,), self.activation_bits)
            for signed in (False, True)
        }
        check_share("max_pruned", max_pruned)
        if group_size is not None:
            FilterGate("", 1, group_size)  # checks

    def config_for(self, layer: keras.layers.Layer, place: Place) -> QuantizeConfig:
        has_8_bits = self.first_last == "8bit" and (place.is_first or place.is_last)
        weight_bits = (8,) if has_8_bits else self.weight_bits
        activation_bits = (8,) if has_8_bits or place.is_first else self.activation_bits
        return self._configs[weight_bits, activation_bits, place.signed_input]

    def check(self, model: keras.Model, plan: Plan) -> None:
        check_sizes_known(model, self.input_shape, "A cost in BOPs")
        if self.bops is None:
            return
        bops_model = BopsModel(plan.graph, model, self.input_shape)
        budget = parse_budget(self.bops, bops_model.float_bops, "bops")
        bits = {
            row.name: (
                candidates(row.config.kernel_quantizer),
                candidates(row.config.input_quantizer),
            )
            for row in plan.treated()
        }
        gates = self._filter_gates(bops_model.filters, plan)
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
                f"A BOPs budget from {at_least(lowest)} (lowest bits, most filters "
                f"removed) to {at_most(highest)} (highest bits) can be met: 1/"
                f"{at_most(bops_model.float_bops / lowest)} to 1/"
                f"{at_least(bops_model.float_bops / highest)} of the float model's "
                f"{bops_model.float_bops:.4g}. Received: bops={self.bops!r}, "
                f"{budget:.4g}."
            )

    def notes(self, model: keras.Model, plan: Plan) -> dict[str, str]:
        if self.group_size is None:
            return {}
        all_filters = plan.graph.derived(Filters)
        gates = self._filter_gates(all_filters, plan)
        notes = {}
        for name, filters in all_filters.by_layer.items():
            if name in gates:
                gate = gates[name]
                notes[name] = (
                    f"up to {gate.most_closed} of {gate.group_count} groups of "
                    f"{gate.group_size} filters may go"
                )
            elif filters.why_kept:
                notes[name] = f"filters stay: {filters.why_kept}"
            elif filters.consumers:
                notes[name] = "filters stay: not quantized"
        return notes

    def layers_before(
        self, model: keras.Model, plan: Plan
    ) -> dict[str, list[keras.layers.Layer]]:
        graph = plan.graph
        filters = graph.derived(Filters)
        before: dict[str, list[keras.layers.Layer]] = {}
        for producer, gate in self._filter_gates(filters, plan).items():
            for consumer in filters.by_layer[producer].consumers:
                before.setdefault(consumer, []).append(gate)
        # The budget counts steps by its calls: a layer that is called once is best.
        rows = [row for row in plan.treated() if len(graph.calls_of(row.layer)) == 1]
        first = (rows or plan.treated())[0].name
        before.setdefault(first, []).insert(0, BopsBudget(name="bops_budget"))
        return before

    def _filter_gates(self, all_filters: Filters, plan: Plan) -> dict[str, FilterGate]:
        """Returns `{producer's name: gate}` of the filters that may be removed."""
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
            for name, filters in all_filters.by_layer.items()
            if name in treated and not filters.why_kept and filters.consumers
        }

    def connect(self, student: Student) -> None:
        student.bit_space = SearchSpace(student, self.input_shape)
        student.bit_space.connect()

    def prepare(self, student: Student) -> None:
        calibrate_weights(student)
        for threshold in student.bit_space.activation_thresholds():
            threshold.learns.assign(0.0)  # the gates of the weights begin

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        calibration = CalibrateActivations(recalibrate)
        search = BitSearch(
            student.bit_space,
            recalibrate,
            self.search_fraction,
            calibration,
            bops=self.bops,
            penalty=self.penalty,
        )
        return [calibration, search]

    def measure(self, student: Student) -> dict[str, float]:
        space = student.bit_space
        weight_bits, activation_bits = space.mean_bits()
        bops = float(keras.ops.convert_to_numpy(space.expected_bops()))
        measured = {
            "phase": float(space.is_frozen()),
            "mean_weight_bits": weight_bits,
            "mean_activation_bits": activation_bits,
            "bops": bops,
        }
        if self.bops is not None:
            budget = parse_budget(self.bops, space.bops_model.float_bops, "bops")
            measured["budget_ratio"] = bops / budget
        return measured

    def cost_name(self) -> str:
        return "bops"

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "bops": self.bops,
            "penalty": self.penalty,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "group_size": self.group_size,
            "max_pruned": self.max_pruned,
            "grid": self.grid,
            "first_last": self.first_last,
            "input_shape": self.input_shape,
        }
