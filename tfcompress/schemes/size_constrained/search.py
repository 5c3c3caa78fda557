"""The search of sizes: ADMM inside `fit`, down to the budget, then fine-tuning."""

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import (
    inner_optimizer,
    sum_of_learning_rates,
)
from tfcompress.core.training.search import STEPS_PER_EPOCH, Search

# Share of the search, if there are zeros to find.
ADMM = 0.3
# In a search at least, of either kind.
LEAST_PROJECTIONS = 20
# Without `rho`: by how many factors of e anchors draw kernels in all of ADMM.
PULL = 2.0
# Of the budget: what ADMM's projections keep, where there is as much.
LOOSE = 5.0
# What a layer that trains quantized is to gain by other bits, of its loss: it has to
# learn them anew, and bits that go up and come back leave it with the fewer weights.
WORTH = 0.1
# Times in an epoch that codebooks are fitted to the weights which train with them.
REFRESHES = 20
# What is lacking to a budget that only the finished file can tell.
SHAVE = 0.996
MOST_SHAVES = 10


class SizeSearch(Search):
    """Runs ADMM, comes down to the budget step by step, and keeps it to the end.

    At first kernels train in float, drawn towards their anchors behind every step;
    projections move the anchors at the end of every epoch, or more often in a short
    training. For validation, and between epochs, the student computes with the
    projected weights (arXiv 1910.05897, Section 3).

    ADMM soon holds on to the zeros that it began with, and float kernels do not tell
    what quantized ones can spare. So it keeps more than the budget pays for, and is
    left out where that is every weight. Then the student begins with the zeros that the
    budget asks for and more bits. In the rest of the search it trains quantized; step
    by step, zeros and bits of all layers are chosen anew for a smaller size, and the
    last step meets the budget. From then on bits stay, and so do zeros, but for those
    that keep the file within the budget while its weights train on. All the time that
    the student trains quantized, codebooks follow the weights. A student whose search
    was interrupted has the zeros and bits of its last step.

    Args:
        space: the student's `SizeSpace`, with its budget.
        recalibrate, fraction: see `Search`.
        rho: strength of the pull, or None.
        measure: function from the student to the size of its finished artefact, in the
            budget's unit.
    """

    def __init__(self, space, recalibrate, fraction, rho, measure):
        super().__init__(space, recalibrate, fraction)
        self.rho = rho
        self.measure = measure

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.loose = None
        self.space.admm_step.attach(inner_optimizer(self.model))
        keras_private.rebuild_train_function(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        self.projected = False  # in this epoch, for others to see
        self.refreshed = 0
        if self.searching and self.loose is not None:
            self._measure()
        elif self.searching is False:
            # Weights that train take more than they did: while there is time to make
            # up for it.
            self._keep_promise()
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        part = batch * REFRESHES // (self.params["steps"] or STEPS_PER_EPOCH)
        if part > self.refreshed and (self.loose is not None or not self.searching):
            self.refreshed = part
            self.sync()
            self.space.refresh()

    def begin(self, share):
        self.admm = 0.0 if self.space.affords_all(LOOSE) else ADMM
        self.pull = self.rho
        if self.rho is None:
            steps = ADMM * self.steps()
            self.pull = PULL / sum_of_learning_rates(inner_optimizer(self.model), steps)
        self.next_projection = share + 1.0 / self.steps()
        self.space.admm_step.assign(self.pull, self.space.anchors())

    def state(self):
        return {
            "admm": self.admm,
            "pull": self.pull,
            "next_projection": self.next_projection,
            "loose": self.loose or 0.0,
            "nominal_per_real": self.space.budget.nominal_per_real,
            "overhead": self.space.budget.overhead,
        }

    def resume(self, state):
        self.admm = float(state["admm"])
        self.pull = float(state["pull"])
        self.next_projection = float(state["next_projection"])
        self.loose = float(state["loose"]) or None
        self.space.budget.nominal_per_real = float(state["nominal_per_real"])
        self.space.budget.overhead = float(state["overhead"])

    def advance(self, share):
        self.share = share
        if share >= self.admm:
            self._tighten()
            return
        if share >= self.next_projection:
            self._project()
        self.space.set_quantizing(False)

    def _project(self):
        self.space.project(LOOSE)
        self._wait()
        self.space.admm_step.assign(self.pull, self.space.anchors())

    def _wait(self):
        epoch = 1.0 / (self.fraction * self.params["epochs"])
        self.next_projection = self.share + min(1.0 / LEAST_PROJECTIONS, epoch)

    def _tighten(self):
        """Comes down to the budget along a straight line of the logarithm."""
        if self.loose is None:
            self.space.admm_step.assign(0.0)
            self.space.set_quantizing(True)
            # From the zeros of the start or of ADMM: what goes early is learnt to do
            # without, and bits follow.
            self.space.tighten(LOOSE)
            self.loose = max(1.0, min(LOOSE, self.space.multiple))
        elif self.share < self.next_projection:
            return
        passed = (self.share - self.admm) / (1.0 - self.admm)
        self.space.tighten(self.loose ** (1.0 - passed), WORTH)
        self._wait()

    def on_test_begin(self, logs=None):
        self._show_projected()

    def on_epoch_end(self, epoch, logs=None):
        self._show_projected()

    def _show_projected(self):
        if self.searching and self.loose is None and not self.projected:
            self.projected = True
            self._project()
            self.space.set_quantizing(True)

    def freeze(self):
        self.space.admm_step.assign(0.0)
        self._measure()
        self.space.tighten(worth=WORTH)
        self.space.freeze()
        self.space.set_quantizing(True)
        self.recalibrate()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.space.admm_step.detach()
        self.recalibrate()
        self._keep_promise()

    def _measure(self):
        """Builds the finished artefact.

        What is no codes changes as well: floats train, and xz sees more or less.

        Returns:
            `(size, coded)`, in the budget's unit, of all and of the codes.
        """
        budget = self.space.budget
        coded = budget.size_of(self.space.codes()) - budget.overhead
        size = self.measure(self.model)
        budget.overhead = size - coded
        return size, coded

    def _keep_promise(self):
        """Takes the least weights that are too many for the finished artefact."""
        budget = self.space.budget
        for attempt in range(1, MOST_SHAVES + 1):
            size, coded = self._measure()
            if size <= budget.total:
                return
            # All that is too much has to come from the codes, which often shrink by
            # less than their nominal bits: each attempt takes more.
            share = max(0.0, 1.0 - attempt * (size - budget.total) / coded)
            self.space.shave(SHAVE * share)
            self.recalibrate()
        raise RuntimeError(
            f"A file of at most {budget.total:,.0f} is expected. Received: one of "
            f"{size:,.0f} after {MOST_SHAVES} attempts to make it smaller. Ask for a "
            "larger size."
        )
