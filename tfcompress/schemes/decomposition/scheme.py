"""Scheme of decomposition and channel pruning in one training."""

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.arguments import check_number
from tfcompress.core.budget import at_least, at_most, check_sizes_known, parse_budget
from tfcompress.core.config import KeepFloat
from tfcompress.core.plan import Plan
from tfcompress.core.scheme import Place, Scheme, SearchingScheme
from tfcompress.core.student import Student
from tfcompress.core.tensor_ranges import BITS
from tfcompress.core.training.calibration import CalibrateActivations
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.cost.input_shape import InputShape, parse_input_shape
from tfcompress.graph.channels import Channels
from tfcompress.schemes.decomposition.factorize import Factorize, renamed
from tfcompress.schemes.decomposition.scoring import equal_scores
from tfcompress.schemes.decomposition.search import RankSearch
from tfcompress.schemes.decomposition.search_space import RankSpace, why_kept
from tfcompress.schemes.decomposition.selection import lowest_cost
from tfcompress.schemes.decomposition.width_model import WidthModel

MEASURED = "measured"


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class Decomposition(SearchingScheme):
    """Scheme that lowers ranks and removes channels in one training.

    Method: EDP (TNNLS 2021), reconstructed from its abstract.

    Every convolution and dense kernel becomes a basis times coefficients. A group lasso
    on the rows and columns of the coefficients lowers the rank and removes channels,
    together with those that additions tie to them.

    In the first part of a `fit` the cost comes down to the budget step by step. The
    lasso shrinks the channels and ranks that explain the least variance, measured on
    training data, for the cost that they save. Then the selection freezes, and the rest
    of the `fit`, or further ones, fine-tune. `tfc.finalize` returns a plain, smaller
    Keras model: a layer becomes two where that is clearly cheaper, else it is merged.

    The logs of each epoch have "macs" or "params", the cost without the channels and
    ranks that are zero by then; "budget_ratio", that cost divided by the budget; and
    "phase", 1 once the search has ended, else 0.

    Args:
        macs: int, float or str. Budget: a count of multiply-accumulates, or a share of
            the model's as text, such as "1/2" or "0.45". The finished model takes at
            most that, and at least 98 % of it wherever single channels allow that.
        params: int, float or str. Budget of parameters in place of one of MACs.
        penalty: float, 0 to 1000. Strength of the group lasso in place of a budget, on
            the paper's sigmoid ramp. At 1 the mean group would be zero at the end of
            the search if the loss did not oppose.
        start: str. Start of the factorization. "svd": for trained models, rotated to
            the principal axes of the layer's outputs when `fit` begins. "identity": the
            kernel times the identity.
        batch_norm: str. Place of the batch normalization after a layer. "after": as it
            is; its gamma and beta shrink together with the coefficients. "between":
            between basis and coefficients, see `tfcompress.Factorize`.
        margin: float or str. Two layers replace one only where they cost less than
            `margin` times as much: they take more time than their MACs say.
            "measured" times both in LiteRT, on the machine that trains, and keeps the
            faster.
        round_to: int. Layers keep a multiple of so many channels.
        search_fraction: float. Share of the first `fit` that searches, in (0, 1].
        input_shape: tuple of ints without the batch axis, such as (224, 224, 3). Size
            at which a model of free input sizes is counted; it still takes inputs of
            any size. For several inputs a list of these in their order, or a dict by
            their names.
        weight_decay: float. See `Scheme`. The decay is on the basis: without it the
            basis would grow while the coefficients shrink.
        overrides: dict. See `Scheme`.
        activation_bits: 8 or None. With 8 all tensors that an int8 file stores have
            learned ranges, and finalized kernels are packed with 8 bits. The student
            computes with rounded kernels: in layers that are left alone from the start,
            in the others once the selection is frozen. None leaves activations and
            kernels float.

    Raises:
        ValueError: if an argument is out of its range, or not exactly one of `macs`,
            `params` and `penalty` is given.
        TypeError: if an override is neither `KeepFloat` nor `Factorize`.

    Example:

    >>> student = tfc.compress(model, tfc.Decomposition(macs="1/2"))
    """

    treatment = Factorize

    def __init__(
        self,
        macs: float | str | None = None,
        params: float | str | None = None,
        penalty: float | None = None,
        start: str = "svd",
        batch_norm: str = "after",
        margin: float | str = 0.7,
        round_to: int = 1,
        search_fraction: float = 0.5,
        weight_decay: float = 1e-4,
        overrides: Mapping[str, KeepFloat | Factorize] | None = None,
        input_shape: InputShape | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__(search_fraction, overrides, weight_decay)
        if sum(x is not None for x in (macs, params, penalty)) != 1:
            raise ValueError(
                "One of `macs` and `params`, a budget, and `penalty` is expected. "
                f"Received: macs={macs!r}, params={params!r}, penalty={penalty!r}."
            )
        if penalty is not None:
            check_number(
                "penalty", penalty, "a number from 0 to 1000", lambda x: 0 <= x <= 1000
            )
        self.unit = "macs" if params is None else "params"
        self.budget = macs if params is None else params
        if self.budget is not None:
            parse_budget(self.budget, 1.0, self.unit)
        if margin != MEASURED:
            expected = f"in (0, 1] or '{MEASURED}'"
            check_number("margin", margin, expected, lambda x: 0 < x <= 1)
        if not isinstance(round_to, int) or round_to < 1:
            raise ValueError(
                f"`round_to` is a positive integer. Received: round_to={round_to!r}."
            )
        if activation_bits not in (None, BITS):
            raise ValueError(
                f"`activation_bits` is {BITS} or None. Received: "
                f"activation_bits={activation_bits!r}."
            )
        self.macs = macs
        self.params = params
        self.penalty = penalty
        self.start = start
        self.batch_norm = batch_norm
        self.margin = margin
        self.round_to = round_to
        self.input_shape = parse_input_shape(input_shape)
        self.activation_bits = activation_bits
        self.config = Factorize(start, batch_norm)

    def config_for(self, layer: keras.layers.Layer, place: Place) -> Factorize:
        return self.config

    def check(self, model: keras.Model, plan: Plan) -> None:
        if self.unit == "macs":
            check_sizes_known(model, self.input_shape, "A cost in MACs")
        elif self.margin == MEASURED:
            check_sizes_known(model, self.input_shape, "A measured margin")
        if self.budget is None:
            return
        channels = plan.graph.derived(Channels)
        factorized = [row.name for row in plan.treated()]
        width_model = WidthModel(
            model, channels, self.unit, factorized, self._margin(), self.input_shape
        )
        scores = equal_scores(width_model, channels)
        full = width_model.full_cost()
        lowest = lowest_cost(width_model, scores, self.round_to)
        budget = parse_budget(self.budget, full, self.unit)
        if not lowest <= budget <= full:
            raise ValueError(
                f"A budget of {self.unit} from {at_least(lowest)} to {at_most(full)}, "
                f"1/{at_most(full / lowest)} to 1/1 of the model's, can be met. "
                "Received: "
                f"{self.unit}={self.budget!r}, {budget:.4g}."
            )

    def notes(self, model: keras.Model, plan: Plan) -> dict[str, str]:
        channels = plan.graph.derived(Channels)
        factorized = {row.name for row in plan.treated()}
        notes: dict[str, str] = {}
        for group_set in channels.group_sets:
            why = why_kept(group_set, factorized)
            for name in factorized.intersection(group_set.producers):
                tied = [other for other in group_set.producers if other != name]
                with_others = f" with those of {', '.join(tied)}" if tied else ""
                kept = f"channels stay: {why}"
                notes.setdefault(name, kept if why else f"channels may go{with_others}")
        return notes

    def learns_all_ranges(self) -> bool:
        return self.activation_bits == BITS

    def packs_all_kernels(self) -> bool:
        return self.learns_all_ranges()

    def connect(self, student: Student) -> None:
        student.rank_space = RankSpace(
            student, self.unit, self._margin(), self.input_shape
        )
        student.rank_space.connect()

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        space = student.rank_space
        return [
            CalibrateActivations(recalibrate),
            RankSearch(
                space,
                recalibrate,
                self.search_fraction,
                self.round_to,
                measure_latency=self.margin == MEASURED,
                budget=self._total(student),
                penalty=self.penalty,
            ),
        ]

    def measure(self, student: Student) -> dict[str, float]:
        space, budget = student.rank_space, self._total(student)
        cost = float(space.present_cost())
        measured = {"phase": float(space.is_frozen()), self.unit: cost}
        if budget is not None:
            measured["budget_ratio"] = cost / budget
        return measured

    def cost_name(self) -> str:
        return self.unit

    def _total(self, student: Student) -> float | None:
        """The budget as a count, or None."""
        if self.budget is None:
            return None
        full = student.rank_space.width_model.full_cost()
        return parse_budget(self.budget, full, self.unit)

    def _margin(self) -> float:
        return 1.0 if isinstance(self.margin, str) else self.margin

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "macs": self.macs,
            "params": self.params,
            "penalty": self.penalty,
            "start": self.start,
            "batch_norm": self.batch_norm,
            "margin": self.margin,
            "round_to": self.round_to,
            "input_shape": self.input_shape,
            "activation_bits": self.activation_bits,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scheme:
        return super().from_config(renamed(config))
