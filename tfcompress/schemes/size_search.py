"""The search of sizes: ADMM inside `fit`, then masked fine-tuning."""

from tfcompress.schemes.learning_rate import inner_optimizer
from tfcompress.schemes.search import Search

# In a search at least.
LEAST_PROJECTIONS = 20
# Without `rho`: by how many factors of e anchors draw kernels in a whole search.
PULL = 20.0
# What is lacking to a budget that only the finished file can tell.
SHAVE = 0.998
MOST_SHAVES = 10


class SizeSearch(Search):
    """Runs ADMM, settles zeros and bits, and keeps the budget to the end.

    Kernels train in float, drawn towards their anchors behind every step; projections
    move the anchors at the end of every epoch, or more often in a short training. For
    validation, and between epochs, the student computes with the projected weights.
    After the search zeros and bits stay, and the student trains quantized, with
    codebooks that follow the weights (arXiv 1910.05897, Section 3). A student whose
    search was interrupted has the zeros and bits of its last projection.

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
        self.space.tether.attach(inner_optimizer(self.model))
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        self.projected = False  # in this epoch, for others to see
        super().on_epoch_begin(epoch, logs)

    def begin(self, share):
        self.pull = self.rho
        if self.rho is None:
            self.pull = PULL / self.sum_of_learning_rates()
        self.next_projection = share + 1.0 / self.steps()
        self.space.tether.assign(self.pull, self.space.anchors())

    def state(self):
        return {
            "pull": self.pull,
            "next_projection": self.next_projection,
            "nominal_per_real": self.space.budget.nominal_per_real,
        }

    def resume(self, state):
        self.pull = float(state["pull"])
        self.next_projection = float(state["next_projection"])
        self.space.budget.nominal_per_real = float(state["nominal_per_real"])

    def advance(self, share):
        self.share = share
        if share >= self.next_projection:
            self._project()
        self.space.set_quantizing(False)

    def _project(self):
        self.space.project()
        epoch = 1.0 / (self.fraction * self.params["epochs"])
        self.next_projection = self.share + min(1.0 / LEAST_PROJECTIONS, epoch)
        self.space.tether.assign(self.pull, self.space.anchors())

    def on_test_begin(self, logs=None):
        self._show_projected()

    def on_epoch_end(self, epoch, logs=None):
        self._show_projected()

    def _show_projected(self):
        if self.searching and not self.projected:
            self.projected = True
            self._project()
            self.space.set_quantizing(True)

    def settle(self):
        self.space.tether.assign(0.0)
        self.space.settle()
        self.space.fix()
        self.space.set_quantizing(True)
        self.recalibrate()

    def tune(self):
        self.space.refresh()

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.space.tether.detach()
        self._keep_promise()

    def _keep_promise(self):
        """Takes the least weights that are too many for the finished artefact."""
        budget = self.space.budget
        for _ in range(MOST_SHAVES):
            self.recalibrate()
            size = self.measure(self.model)
            if size <= budget.total:
                return
            # All that is too much has to come from the codes.
            coded = budget.size_of(self.space.codes()) - budget.overhead
            share = max(0.0, 1.0 - (size - budget.total) / coded)
            self.space.shave(SHAVE * share)
        raise RuntimeError(
            f"A file of at most {budget.total:,.0f} is expected. Received: one of "
            f"{size:,.0f} after {MOST_SHAVES} attempts to make it smaller. Ask for a "
            "larger size."
        )
