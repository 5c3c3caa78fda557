"""Search of bit sharing, which runs in the first part of `fit`."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.core.budget import parse_budget
from tfcompress.core.checks import DIVERGED, check_finite
from tfcompress.core.training.calibration import (
    CalibrateActivations,
    calibrate_activations,
    calibrate_weights,
)
from tfcompress.core.training.learning_rate import inner_optimizer, training_model
from tfcompress.core.training.penalty import DESCENT, PenaltyMultiplier
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.core.training.search import Search
from tfcompress.schemes.bit_sharing.search_space import GateValues, SearchSpace
from tfcompress.schemes.bit_sharing.sensitivity import measure_sensitivities

# Distance that thresholds can cover in a search if the gradient is 1 throughout. Gates
# change when thresholds reach about 1.
TRAVEL = 10.0


class BitSearch(Search):
    """Callback that adapts the penalty to the budget, then freezes bits and filters.

    The penalty is the paper's lambda, see `PenaltyMultiplier`. Where the BOPs are below
    their target it is negative and opens gates. After an interrupted search the gates
    start as they are. With a budget the search ends in the allocation of the least
    cost; thresholds lead there. With a constant penalty the gates decide.

    Args:
        space: `SearchSpace` of the student.
        recalibrate, fraction: see `Search`. The batches also calibrate the ranges.
        calibration: callback that calibrates activations before the search.
        bops: budget of BOPs in the form of `BitSharing`, or None.
        penalty: float. Constant penalty if there is no budget.

    Attributes:
        costs: cost of closing each gate at the start, in the form of
            `SearchSpace.costs()`.
        margins: list of float arrays (gates,). Margins of all gates, recorded in the
            last part of a search with a constant penalty.
    """

    space: SearchSpace
    costs: GateValues
    margins: list[np.ndarray]
    searching: bool | None

    def __init__(
        self,
        space: SearchSpace,
        recalibrate: Recalibration,
        fraction: float,
        calibration: CalibrateActivations,
        bops: float | str | None = None,
        penalty: float | None = None,
    ) -> None:
        super().__init__(space, recalibrate, fraction)
        self._calibration = calibration
        self.budget: float | None = None
        if bops is not None:
            self.budget = parse_budget(bops, space.bops_model.float_bops, "bops")
        self.penalty = penalty
        self._strength = space.budget.strength

    def on_progress(self, share: float) -> None:
        super().on_progress(share)
        self._set_searching(bool(self.searching))

    def _set_searching(self, searching):
        if self.space.set_searching(searching):
            keras_private.rebuild_train_function(training_model(self.model))

    def begin(self, share: float) -> None:
        self.costs = self.space.costs()
        activations = self._calibration.take_activations()
        if share > 0:
            activations = None  # a backup has other weights
        if share == 0 or not self.space.is_measured():
            self.costs = measure_sensitivities(
                self.model, self.space, self.recalibrate, activations
            )
            self._set_pace()
        self.margins = []
        if self.budget is not None:
            reached = abs(float(ops.convert_to_numpy(self._strength)))
            self.penalty_multiplier = PenaltyMultiplier(
                self._bops(), self.budget, share, reached or 1.0
            )

    def search_state(self) -> dict[str, Any]:
        state = {"margins": np.array(self.margins), "costs": _flatten(self.costs)}
        return state | (
            vars(self.penalty_multiplier) if self.budget is not None else {}
        )

    def resume(self, state: dict[str, Any]) -> None:
        self.margins = list(state.pop("margins"))
        self.costs = self.space.costs()
        if "costs" in state:  # states of version 0.1.0 have none
            self.costs = _unflatten(state.pop("costs"), self.costs)
        if self.budget is not None:
            self.penalty_multiplier = PenaltyMultiplier(1.0, 1.0)
            vars(self.penalty_multiplier).update(
                {name: float(x) for name, x in state.items()}
            )
        for threshold in self.space.thresholds():
            threshold.follow_pace()
        keras_private.rebuild_train_function(training_model(self.model))

    def _set_pace(self):
        # With momentum a gradient moves the thresholds 1 / (1 - momentum) times as far.
        momentum = getattr(inner_optimizer(self.model), "momentum", 0.0)
        pace = TRAVEL * (1.0 - momentum) / self.sum_of_learning_rates()
        for threshold in self.space.thresholds():
            threshold.set_pace(pace)
        keras_private.rebuild_train_function(training_model(self.model))

    def on_rate_change(self, factor: float) -> None:
        self._set_pace()

    def advance(self, share: float) -> None:
        penalty = self.penalty
        if self.budget is not None:
            penalty = self.penalty_multiplier.penalty(share, self._bops())
        elif share > DESCENT:
            self.margins.append(_flatten(self.space.margins()))
        self._strength.assign(penalty)

    def _bops(self):
        # Eager: a compilation takes as long as about thirty calls.
        bops = float(ops.convert_to_numpy(self.space.expected_bops()))
        if not 0 < bops < np.inf:  # no filter of NaN is kept
            check_finite(self.model, DIVERGED)
        return bops

    def freeze(self) -> None:
        self._strength.assign(0.0)
        if self.budget is not None:
            self.space.freeze_within(self.budget, self.costs)
        else:
            # Gates near their thresholds open and close in turn.
            margins = self.space.margins()
            average = np.mean([*self.margins, _flatten(margins)], axis=0)
            self.space.freeze_learned(_unflatten(average, margins))
        self._set_searching(False)  # the passes below are shorter without gates
        # In the search one range served all candidates.
        calibrate_weights(self.model)
        calibrate_activations(self.recalibrate)
        self.recalibrate()


def _flatten(values: GateValues) -> np.ndarray:
    """Joins the values of all gates to one vector."""
    return np.concatenate(keras.tree.flatten(values))


def _unflatten(values: np.ndarray, structure: GateValues) -> GateValues:
    """Splits a vector into arrays with the sizes and the structure of others."""
    sizes = [len(array) for array in keras.tree.flatten(structure)]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return keras.tree.pack_sequence_as(structure, parts)
