"""The search of bit sharing, as it goes along in `fit`."""

import keras
from keras import ops

from tfcompress.schemes.budget import parse_budget
from tfcompress.schemes.calibration import calibrate_activations, calibrate_weights
from tfcompress.schemes.progress import ProgressCallback
from tfcompress.schemes.recalibration import Recalibration
from tfcompress.schemes.sensitivity import measure_sensitivities
from tfcompress.schemes.steering import (
    DESCENT,
    STEPS_PER_EPOCH,
    Steering,
    inner_optimizer,
    sum_of_learning_rates,
)

# How far thresholds may travel in a search when the gradient is 1 throughout; gates
# change when thresholds reach about 1.
TRAVEL = 10.0


class BitSearch(ProgressCallback):
    """Steers the penalty so that the budget is met, then fixes the choice.

    The search finds the paper's lambda by itself, see `Steering`. Where the BOPs are
    below their course the penalty is negative and opens gates.

    A search that is interrupted leaves a student whose gates stand as they are; the
    next `fit` searches on.

    Args:
        space: the student's `SearchSpace`.
        batches: list of model inputs to calibrate the chosen ranges with.
        fraction: share of the training that searches.
        bops: the budget, as `BitSharing` takes it, or None.
        penalty: its weight, if there is no budget.
    """

    def __init__(self, space, batches, fraction, bops=None, penalty=None):
        super().__init__()
        self.space = space
        self.batches = batches
        self.fraction = fraction
        self.budget = None
        if bops is not None:
            self.budget = parse_budget(bops, space.bops_model.float_bops, "bops")
        self.penalty = penalty
        self._strength = space.budget.strength

    def on_train_begin(self, logs=None):
        self.searching = None

    def _begin(self, share):
        """At the first step: by then, a callback has restored an interrupted run."""
        self.searching = not self.space.is_fixed()
        if not self.searching:
            return
        if share == 0:
            measure_sensitivities(self.model, self.space, self.batches)
            self._set_pace()
        self.margins = []
        if self.budget is not None:
            reached = abs(float(ops.convert_to_numpy(self._strength)))
            self.steering = Steering(self._bops(), self.budget, share, reached or 1.0)

    def _set_pace(self):
        optimizer = inner_optimizer(self.model)
        per_epoch = self.params["steps"] or STEPS_PER_EPOCH
        steps = max(1.0, self.fraction * self.params["epochs"] * per_epoch)
        # With momentum, a step goes on to have an effect.
        lasting = 1.0 / (1.0 - getattr(optimizer, "momentum", 0.0))
        pace = TRAVEL / (lasting * sum_of_learning_rates(optimizer, steps))
        for threshold in self.space.thresholds():
            threshold.set_pace(pace)
        self.model.make_train_function(force=True)

    def on_progress(self, share):
        share = share / self.fraction
        if self.searching is None:
            self._begin(share)
        if not self.searching:
            return
        if share > DESCENT:
            self.margins.append(self.space.margins())
        if share >= 1.0:
            self._finish()
        elif self.budget is None:
            self._strength.assign(self.penalty)
        else:
            self._strength.assign(self.steering.penalty(share, self._bops()))

    def _bops(self):
        return float(ops.convert_to_numpy(self.space.expected_bops()))

    def on_train_end(self, logs=None):
        if self.searching is None and float(ops.convert_to_numpy(self._strength)):
            self._begin(1.0)  # restored after the last step of a search
        # A search of the whole training ends with its last step.
        if self.searching:
            self.margins.append(self.space.margins())
            self._finish()

    def _finish(self):
        self.searching = False
        self._strength.assign(0.0)
        # Gates that compete for the budget take turns in being open; what each is
        # worth shows in the average.
        self.space.fix(keras.tree.map_structure(_mean, *self.margins), self.budget)
        # The ranges served all candidates so far; now they serve one.
        calibrate_weights(self.model)
        recalibrate = Recalibration(self.model)
        recalibrate(self.batches)
        calibrate_activations(self.model, self.batches)
        recalibrate(self.batches)


def _mean(*arrays):
    return sum(arrays) / len(arrays)
