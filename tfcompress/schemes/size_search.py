"""The search of sizes: ADMM inside `fit`, then masked fine-tuning."""

from tfcompress.schemes.progress import ProgressCallback
from tfcompress.schemes.recalibration import Recalibration
from tfcompress.schemes.steering import (
    STEPS_PER_EPOCH,
    inner_optimizer,
    sum_of_learning_rates,
)

# In a search at least.
LEAST_PROJECTIONS = 20
# Without `rho`: by how many factors of e anchors draw kernels in a whole search.
PULL = 20.0
# What is lacking to a budget that only the finished file can tell.
SHAVE = 0.998
MOST_SHAVES = 10


class SizeSearch(ProgressCallback):
    """Runs ADMM, settles zeros and bits, and keeps the budget to the end.

    Kernels train in float, drawn towards their anchors behind every step; projections
    move the anchors at the end of every epoch, or more often in a short training. For
    validation, and between epochs, the student computes with the projected weights.
    After `fraction` of the training zeros and bits are settled, and the rest trains
    quantized, with codebooks that follow the weights (arXiv 1910.05897, Section 3).

    A search that is interrupted leaves a student with the zeros and bits of its last
    projection; the next `fit` searches on.

    Args:
        space: the student's `SizeSpace`.
        budget: its `SizeBudget`.
        batches: list of model inputs to recalibrate batch normalization with.
        fraction: share of the training that searches.
        rho: strength of the pull, or None.
        measure: function from the student to the size of its finished artefact in the
            budget's unit, or None where that is what the budget's model says.
    """

    def __init__(self, space, budget, batches, fraction, rho, measure):
        super().__init__()
        self.space = space
        self.budget = budget
        self.batches = batches
        self.fraction = fraction
        self.rho = rho
        self.measure = measure

    def on_train_begin(self, logs=None):
        self.searching = None
        self.space.tether.attach(inner_optimizer(self.model))
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.projected = False

    def on_progress(self, share):
        if self.searching is None:
            self._begin(share)
        self.share = share
        if self.searching and share >= self.fraction:
            self._settle()
        elif self.searching and share >= self.next_projection:
            self._project()
        elif not self.searching:
            self.space.refresh()
        if self.searching:
            self.space.set_quantizing(False)

    def _begin(self, share):
        """At the first step: by then, a callback has restored an interrupted run."""
        self.searching = not self.space.is_fixed()
        if not self.searching:
            return
        per_epoch = self.params["steps"] or STEPS_PER_EPOCH
        steps = max(1.0, self.fraction * self.params["epochs"] * per_epoch)
        rates = sum_of_learning_rates(inner_optimizer(self.model), steps)
        self.pull = PULL / rates if self.rho is None else self.rho
        self.next_projection = share + 1.0 / (self.params["epochs"] * per_epoch)
        self.space.tether.assign(self.pull, self.space.anchors())

    def on_test_begin(self, logs=None):
        self._show_projected()

    def on_epoch_end(self, epoch, logs=None):
        self._show_projected()

    def _show_projected(self):
        """Once an epoch, before anyone looks at the student."""
        if getattr(self, "searching", False) and not self.projected:
            self._project()
            self.projected = True
            self.space.set_quantizing(True)

    def _project(self):
        self.space.project(self.budget)
        interval = min(self.fraction / LEAST_PROJECTIONS, 1.0 / self.params["epochs"])
        self.next_projection = self.share + interval
        self.space.tether.assign(self.pull, self.space.anchors())

    def _settle(self):
        self.searching = False
        self.space.tether.assign(0.0)
        self.space.settle(self.budget)
        self.space.fix()
        self.space.set_quantizing(True)
        Recalibration(self.model)(self.batches)

    def on_train_end(self, logs=None):
        if self.searching:  # a search of the whole training ends with its last step
            self._settle()
        self.space.tether.detach()
        self._keep_promise()

    def _keep_promise(self):
        """Takes the least weights that are too many for the finished artefact."""
        recalibrate = Recalibration(self.model)
        for _ in range(MOST_SHAVES):
            recalibrate(self.batches)
            size = self.measure(self.model)
            if size <= self.budget.total:
                return
            self.space.shave(SHAVE * self.budget.total / size, self.budget)
        raise RuntimeError(
            f"A file of at most {self.budget.total:,.0f} is expected. Received: one of "
            f"{size:,.0f} after {MOST_SHAVES} attempts to make it smaller. Ask for a "
            "larger size."
        )
