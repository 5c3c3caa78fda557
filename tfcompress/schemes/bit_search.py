"""The search of bit sharing, as it goes along in `fit`."""

import math

import keras
import numpy as np
from keras import ops

from tfcompress.schemes.budget import parse_budget
from tfcompress.schemes.calibration import calibrate_activations, calibrate_weights
from tfcompress.schemes.progress import ProgressCallback
from tfcompress.schemes.recalibration import Recalibration

# How far thresholds may travel in a search when the gradient is 1 throughout; gates
# change when thresholds reach about 1.
TRAVEL = 10.0
# Share of the search after which the BOPs should have come down to the budget.
DESCENT = 0.8
# Deviation of ln(BOPs) from its course at which the penalty is applied in full.
TOLERANCE = 0.05
# Growth of ln(multiplier) over a whole search that never reaches its course, and what
# remains of the multiplier when the BOPs cross it.
GROWTH = 20.0
DAMPING = 0.5
# No deviation is worth more: beyond, single steps would throw all gates about.
MAX_MULTIPLIER = 1000.0
# Of a fit whose number of steps is not known.
STEPS_PER_EPOCH = 100


class BitSearch(ProgressCallback):
    """Steers the penalty so that the budget is met, then fixes the choice.

    ln(BOPs) is to fall along a straight line from where it starts to the budget. The
    penalty is the deviation from the line, limited to the tolerance, times a
    multiplier that grows while the BOPs stay on one side of the line and is halved
    when they cross it: the search finds the paper's lambda by itself, whatever the
    scale of the loss. Below the line the penalty is negative and opens gates.

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
            self._set_pace()
        self.multiplier = abs(float(ops.convert_to_numpy(self._strength))) or 1.0
        self.start = self._log_bops()
        self.began = self.reached = share
        self.deviation = 0.0
        self.margins = []

    def _set_pace(self):
        pace = TRAVEL / self._sum_of_learning_rates()
        for threshold in self.space.thresholds():
            threshold.set_pace(pace)
        self.model.make_train_function(force=True)

    def _sum_of_learning_rates(self):
        """Over the steps of the search, as the optimizer plans them.

        With momentum, a step goes on to have an effect: 1 / (1 - momentum) times it.
        """
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        per_epoch = self.params["steps"] or STEPS_PER_EPOCH
        steps = max(1.0, self.fraction * self.params["epochs"] * per_epoch)
        momentum = getattr(optimizer, "momentum", 0.0)
        schedule = getattr(optimizer, "_learning_rate", None)
        if not callable(schedule):
            rate = float(ops.convert_to_numpy(optimizer.learning_rate))
            return steps * rate / (1.0 - momentum)
        done = int(ops.convert_to_numpy(optimizer.iterations))
        points = done + np.linspace(0, steps, 50)
        rates = [float(ops.convert_to_numpy(schedule(int(step)))) for step in points]
        return steps * max(float(np.mean(rates)), 1e-12) / (1.0 - momentum)

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
            self._steer(share)

    def _steer(self, share):
        goal = math.log(self.budget)
        passed = (share - self.began) / max(DESCENT - self.began, 1e-6)
        course = self.start + (goal - self.start) * min(1.0, passed)
        deviation = (self._log_bops() - course) / TOLERANCE
        deviation = max(-1.0, min(1.0, deviation))
        elapsed, self.reached = share - self.reached, share
        if deviation * self.deviation < 0:
            self.multiplier *= DAMPING
        else:
            self.multiplier *= math.exp(GROWTH * abs(deviation) * elapsed)
        self.multiplier = min(self.multiplier, MAX_MULTIPLIER)
        self.deviation = deviation
        self._strength.assign(self.multiplier * deviation)

    def _log_bops(self):
        return math.log(float(ops.convert_to_numpy(self.space.expected_bops())))

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
    return np.mean(arrays, axis=0)
