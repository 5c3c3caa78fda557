"""The search of bit sharing, as it goes along in `fit`."""

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.core.budget import parse_budget
from tfcompress.core.training.calibration import (
    calibrate_activations,
    calibrate_weights,
)
from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.core.training.penalty import DESCENT, PenaltyMultiplier
from tfcompress.core.training.search import Search
from tfcompress.schemes.bit_sharing.sensitivity import measure_sensitivities

# How far thresholds may travel in a search when the gradient is 1 throughout; gates
# change when thresholds reach about 1.
TRAVEL = 10.0


class BitSearch(Search):
    """Steers the penalty so that the budget is met, then fixes the choice.

    The search adapts the paper's lambda, see `PenaltyMultiplier`. Where the BOPs are
    below their target the penalty is negative and opens gates. In a student whose
    search was interrupted the gates stand as they are.

    Args:
        space: the student's `SearchSpace`.
        recalibrate, fraction: see `Search`; the batches calibrate the ranges as well.
        bops: the budget, as `BitSharing` takes it, or None.
        penalty: its weight, if there is no budget.
    """

    def __init__(self, space, recalibrate, fraction, bops=None, penalty=None):
        super().__init__(space, recalibrate, fraction)
        self.budget = None
        if bops is not None:
            self.budget = parse_budget(bops, space.bops_model.float_bops, "bops")
        self.penalty = penalty
        self._strength = space.budget.strength

    def begin(self, share):
        if share == 0:
            measure_sensitivities(self.model, self.space, self.recalibrate.batches)
            self._set_pace()
        self.margins = []
        if self.budget is not None:
            reached = abs(float(ops.convert_to_numpy(self._strength)))
            self.penalty_multiplier = PenaltyMultiplier(
                self._bops(), self.budget, share, reached or 1.0
            )

    def state(self):
        state = {"margins": np.array(self.margins)}
        return state | (
            vars(self.penalty_multiplier) if self.budget is not None else {}
        )

    def resume(self, state):
        self.margins = list(state.pop("margins"))
        if self.budget is not None:
            self.penalty_multiplier = PenaltyMultiplier(1.0, 1.0)
            vars(self.penalty_multiplier).update(
                {name: float(x) for name, x in state.items()}
            )
        for threshold in self.space.thresholds():
            threshold.follow_pace()
        keras_private.rebuild_train_function(self.model)

    def _set_pace(self):
        # With momentum, a step goes on to have an effect.
        momentum = getattr(inner_optimizer(self.model), "momentum", 0.0)
        pace = TRAVEL * (1.0 - momentum) / self.sum_of_learning_rates()
        for threshold in self.space.thresholds():
            threshold.set_pace(pace)
        keras_private.rebuild_train_function(self.model)

    def advance(self, share):
        if share > DESCENT:
            self._record_margins()
        penalty = self.penalty
        if self.budget is not None:
            penalty = self.penalty_multiplier.penalty(share, self._bops())
        self._strength.assign(penalty)

    def on_train_end(self, logs=None):
        if self.searching is None and float(ops.convert_to_numpy(self._strength)):
            # Restored after the last step of a search.
            self.searching = True
            self.begin(1.0)
        super().on_train_end(logs)

    def _record_margins(self):
        margins = self.space.margins()
        self.margins.append(np.concatenate(keras.tree.flatten(margins)))
        return margins

    def _bops(self):
        return float(ops.convert_to_numpy(self.space.expected_bops()))

    def freeze(self):
        self._strength.assign(0.0)
        margins = self._record_margins()
        # Gates that compete for the budget take turns in being open; what each is
        # worth shows in the average.
        self.space.freeze(
            _unflatten(np.mean(self.margins, axis=0), margins), self.budget
        )
        # The ranges served all candidates so far; now they serve one.
        calibrate_weights(self.model)
        self.recalibrate()
        calibrate_activations(self.model, self.recalibrate.batches)
        self.recalibrate()


def _unflatten(values, structure):
    """A vector as arrays of the sizes, and in the structure, of another's."""
    sizes = [len(array) for array in keras.tree.flatten(structure)]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return keras.tree.pack_sequence_as(structure, parts)
