"""The search of decomposition, as it goes along in `fit`."""

import math

from tfcompress.schemes.cut import choose_cut, cut_at
from tfcompress.schemes.measured import slower_in_two
from tfcompress.schemes.recalibration import Recalibration
from tfcompress.schemes.search import Search
from tfcompress.schemes.steering import Steering, inner_optimizer

# Of the mean group's norm: a step that takes more cannot be steered.
MOST_PER_STEP = 0.1


class RankSearch(Search):
    """Shrinks groups until the cost is down to the budget, then cuts.

    The strength of the group lasso is steered, see `Steering`: in units in which the
    mean group would be gone at the end of a search at strength 1. What is left to miss
    the budget, the cut decides. With a penalty in place of a budget the strength
    follows the paper's ramp, a sigmoid, and what has become zero is cut. What is cut is
    masked, and the rest of the training goes without shrinking. A student whose search
    was interrupted has all of its channels.

    Args:
        space: the student's connected `RankSpace`.
        batches, fraction: see `Search`.
        round_to: see `choose_cut`.
        measure: whether layers are decomposed only where LiteRT is faster for it.
        budget: in the unit of the space's width model, or None.
        penalty: the strength, if there is no budget.
    """

    def __init__(
        self, space, batches, fraction, round_to, measure, budget=None, penalty=None
    ):
        super().__init__(space, batches, fraction)
        self.round_to = round_to
        self.measure = measure
        self.budget = budget
        self.penalty = penalty

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.space.measure()
        self.space.pressure.attach(inner_optimizer(self.model))
        self.model.make_train_function(force=True)

    def begin(self, share):
        self.unit = self.space.mean_score() / self.sum_of_learning_rates()
        if self.budget is not None:
            self.steering = Steering(self.space.cost(), self.budget, share)

    def advance(self, share):
        if self.budget is None:
            ramp = 1.0 / (1.0 + math.exp(15.0 - 30.0 * share))
            strength = self.penalty * ramp
        else:
            penalty = self.steering.penalty(share, self.space.cost())
            strength = min(max(0.0, penalty), MOST_PER_STEP * self.steps())
        self.space.pressure.assign(self.unit * strength)

    def settle(self):
        self.space.pressure.assign(0.0)
        self.space.apply(self._cut())
        Recalibration(self.model)(self.batches)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.space.pressure.detach()

    def _cut(self):
        cut = self._cut_by_scores()
        # Each round settles a layer or more, so there are not many.
        while self.measure and (slower := slower_in_two(self.space, cut)):
            for name in slower:
                self.space.width_model.keep_whole(name)
            cut = self._cut_by_scores()
        return cut

    def _cut_by_scores(self):
        space = self.space
        model, scores = space.width_model, space.scores()
        if self.budget is None:
            return cut_at(space.gone_below(), model, scores, self.round_to)
        return choose_cut(model, scores, self.budget, self.round_to)
