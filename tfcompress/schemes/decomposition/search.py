"""Search of decomposition during `fit`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import training_model
from tfcompress.core.training.penalty import DESCENT
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.core.training.search import Search
from tfcompress.progress_bar import announced
from tfcompress.schemes.decomposition.activation_statistics import (
    MeasureActivations,
    calibrate_hidden,
)
from tfcompress.schemes.decomposition.latency import slower_when_decomposed
from tfcompress.schemes.decomposition.scoring import (
    Scores,
    compute_scores,
    equal_scores,
    zero_where_removed,
)
from tfcompress.schemes.decomposition.search_space import RankSpace
from tfcompress.schemes.decomposition.selection import Selection, select, select_above

# Share of the search in which a group of the mean norm shrinks to zero.
SHRINKAGE_SHARE = 0.1
# Largest fall of a norm in one step, as a share of the mean norm: more would remove a
# group at once.
MAX_STEP = 0.1


class RankSearch(Search):
    """Search that shrinks groups down to the budget, then freezes the selection.

    At first the factors are rotated to the principal axes of their layers' outputs, and
    channels and ranks are scored. Then a target cost comes down from the full cost to
    the budget. Those groups shrink that a selection for the target removes. The others
    lose nothing to the group lasso and adapt as the removed ones fade. Shrinking all
    alike, as the paper does, takes hundreds of epochs, or most of the accuracy.

    Scores are those of the network before the search. Its variances change at the
    learning rates of the search, and then too many channels of late layers seem to
    explain little.

    With a penalty in place of a budget all groups shrink, on the paper's sigmoid ramp.
    At a penalty of 1 the mean group would be zero at the end of the search. Groups that
    are zero then are removed.

    Removed groups are masked, and the rest of the training goes without shrinking. On
    learned ranges it computes with kernels of 8 bits, see `layers.Int8Factors`. A
    student whose search was interrupted has all of its channels.

    Args:
        space: connected `RankSpace` of the student.
        recalibrate: `Recalibration` of the student; activations are measured on its
            batches.
        fraction: float. Share of the training that searches.
        round_to: int. See `select`.
        measure_latency: bool. Whether layers are decomposed only where LiteRT is faster
            for it.
        budget: float or None. Cost in the unit of the space's width model.
        penalty: float or None. Strength of the group lasso if there is no budget.
    """

    def __init__(
        self,
        space: RankSpace,
        recalibrate: Recalibration,
        fraction: float,
        round_to: int,
        measure_latency: bool,
        budget: float | None = None,
        penalty: float | None = None,
    ) -> None:
        super().__init__(space, recalibrate, fraction)
        self.round_to = round_to
        self.measure_latency = measure_latency
        self.budget = budget
        self.penalty = penalty

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.measure = MeasureActivations(self.recalibrate, self.space.layers)
        self.space.lasso.attach(training_model(self.model).optimizer)
        keras_private.rebuild_train_function(training_model(self.model))

    def begin(self, share: float) -> None:
        if share == 0 or self.space.is_new():
            self.space.rotate(self.measure())
        self.space.normalize()
        self.unit = self.space.mean_norm() / self.sum_of_learning_rates()
        if self.budget is not None:
            self.scores = self._present_scores()

    def search_state(self) -> dict[str, Any]:
        # The names are those of earlier files.
        state = {"scales": self.space.scales(), "unit": self.unit}
        if self.budget is not None:
            state["scores"] = self.scores.vector()
        return state

    def resume(self, state: Mapping[str, np.ndarray]) -> None:
        self.space.set_scales(state["scales"])
        self.unit = float(state["unit"])
        if "scores" in state:
            same = equal_scores(self.space.width_model, self.space.channels)
            self.scores = same.with_vector(state["scores"])
        elif self.budget is not None:  # a file of version 0.1.0
            self.scores = self._present_scores()

    def on_rate_change(self, factor: float) -> None:
        self.unit *= factor

    def advance(self, share: float) -> None:
        if self.budget is None:
            ramp = 1.0 / (1.0 + math.exp(15.0 - 30.0 * share))
            self.space.lasso.set_strengths(self.unit * self.penalty * ramp)
            return
        full = self.space.width_model.full_cost()
        target = full * (self.budget / full) ** min(1.0, share / DESCENT)
        strength = min(1.0 / SHRINKAGE_SHARE, MAX_STEP * self.steps())
        with announced("Selection of channels and ranks"):
            selection = self._select(target)
        self.space.shrink(
            selection.keep_groups, selection.keep_ranks, self.unit * strength
        )

    def freeze(self) -> None:
        self.space.lasso.set_strengths(0.0)
        selection = self._final_selection()
        self.space.mask(selection.keep_groups, selection.keep_ranks)
        if layers := self.space.with_hidden_ranges():
            calibrate_hidden(self.recalibrate, layers)
        self.space.freeze(selection.keep_groups, selection.keep_ranks)
        self.recalibrate()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        self.space.lasso.detach()

    def on_interrupt(self) -> None:
        self.space.lasso.detach()

    def _final_selection(self) -> Selection:
        selection = self._selection_now()
        # Each round excludes a layer or more, so there are not many.
        while self.measure_latency and (
            slower := slower_when_decomposed(self.space, selection)
        ):
            for name in slower:
                self.space.width_model.never_decompose(name)
            selection = self._selection_now()
        return selection

    def _selection_now(self) -> Selection:
        if self.budget is not None:
            return self._select(self.budget)
        scores = self._present_scores()
        return select_above(0.0, self.space.width_model, scores, self.round_to)

    def _select(self, cost: float) -> Selection:
        # A removed channel would not come back: its batch normalization is zero too.
        scores = zero_where_removed(self.scores, self.space)
        return select(self.space.width_model, scores, cost, self.round_to)

    def _present_scores(self) -> Scores:
        statistics = self.measure()
        return compute_scores(self.space, statistics)
