"""The search of decomposition, as it goes along in `fit`."""

import math

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.core.training.penalty import DESCENT
from tfcompress.core.training.search import Search
from tfcompress.schemes.decomposition.activation_statistics import MeasureMoments
from tfcompress.schemes.decomposition.latency import slower_in_two
from tfcompress.schemes.decomposition.selection import choose_cut, cut_at

# What is to go takes this share of the search to shrink from the mean norm to zero.
DYING = 0.1
# Share of the batches, 1 / FEW, that scores are followed with.
FEW = 4
# Of the mean group's norm: a step that takes more is a cut.
MOST_PER_STEP = 0.1


class RankSearch(Search):
    """Shrinks groups until the cost is down to the budget, then cuts.

    At first the coefficients are turned to the principal axes of what their layers
    compute. Then the cost that is aimed at comes down from the whole to the budget, and
    the groups shrink that a cut to it would take now. Those that will stay lose nothing
    to the group lasso and learn to do without the others as these fade: shrinking all
    alike, as the paper does, takes hundreds of epochs, or most of the accuracy.

    With a penalty in place of a budget all groups shrink, by the paper's ramp, a
    sigmoid, in units in which the mean group would be gone at the end of the search at
    1; what has become zero is cut. What is cut is masked, and the rest of the training
    goes without shrinking. A student whose search was interrupted has all of its
    channels.

    Args:
        space: the student's connected `RankSpace`.
        recalibrate, fraction: see `Search`; energies are measured on the batches.
        round_to: see `choose_cut`.
        measure: whether layers are decomposed only where LiteRT is faster for it.
        budget: in the unit of the space's width model, or None.
        penalty: the strength, if there is no budget.
    """

    def __init__(
        self, space, recalibrate, fraction, round_to, measure, budget=None, penalty=None
    ):
        super().__init__(space, recalibrate, fraction)
        self.round_to = round_to
        self.measure = measure
        self.budget = budget
        self.penalty = penalty

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.moments = MeasureMoments(self.model, self.space.layers)
        self.space.lasso.attach(inner_optimizer(self.model))
        keras_private.rebuild_train_function(self.model)

    def begin(self, share):
        if share == 0:
            self.space.turn(self.moments(self.recalibrate.batches))
        self.space.measure()
        self.unit = self.space.mean_size() / self.sum_of_learning_rates()

    def state(self):
        return {"scales": self.space.scales(), "unit": self.unit}

    def resume(self, state):
        self.space.set_scales(state["scales"])
        self.unit = float(state["unit"])

    def advance(self, share):
        if self.budget is None:
            ramp = 1.0 / (1.0 + math.exp(15.0 - 30.0 * share))
            self.space.lasso.assign(self.unit * self.penalty * ramp)
            return
        whole = self.space.width_model.whole()
        goal = whole * (self.budget / whole) ** min(1.0, share / DESCENT)
        strength = min(1.0 / DYING, MOST_PER_STEP * self.steps())
        scores = self.space.scores(self.moments(self._few()))
        self.space.press(self._cut_to(goal, scores), self.unit * strength)

    def freeze(self):
        self.space.lasso.assign(0.0)
        self.space.apply(self._cut())
        self.recalibrate()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.space.lasso.detach()

    def _cut(self):
        space, moments = self.space, self.moments(self.recalibrate.batches)
        cut = self._cut_by(space.scores(moments))
        # Each round settles a layer or more, so there are not many.
        while self.measure and (slower := slower_in_two(space, cut)):
            for name in slower:
                space.width_model.keep_whole(name)
            cut = self._cut_by(space.scores(moments))
        return cut

    def _few(self):
        """Enough batches to follow what was measured with all of them."""
        batches = self.recalibrate.batches
        return batches[: max(1, len(batches) // FEW)]

    def _cut_by(self, scores):
        if self.budget is not None:
            return self._cut_to(self.budget, scores)
        return cut_at(0.0, self.space.width_model, scores, self.round_to)

    def _cut_to(self, cost, scores):
        return choose_cut(self.space.width_model, scores, cost, self.round_to)
