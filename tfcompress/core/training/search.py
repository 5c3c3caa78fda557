"""What the searches of all schemes have in common, as they go along in `fit`."""

from tfcompress.core.training.learning_rate import (
    inner_optimizer,
    sum_of_learning_rates,
)
from tfcompress.core.training.progress import ProgressCallback

# Steps of an epoch whose number is not known.
STEPS_PER_EPOCH = 100


class Search(ProgressCallback):
    """Searches for a share of the training, then settles what was found.

    A search that is interrupted leaves a student that is not settled; the next `fit`
    searches on. Subclasses give `begin`, `state`, `resume`, `advance` and `settle`.

    Args:
        space: what is searched; `space.is_frozen()` says whether that is over.
        recalibrate: the student's `Recalibration`.
        fraction: share of the training that searches.
    """

    def __init__(self, space, recalibrate, fraction):
        super().__init__()
        self.space = space
        self.recalibrate = recalibrate
        self.fraction = fraction

    def begin(self, share):
        """At the first step of a `fit` that searches, after a share of the search."""

    def state(self):
        """What `resume` needs and no variable has: a dict of arrays and numbers."""
        raise NotImplementedError

    def resume(self, state):
        """In place of `begin` where a restored `fit` goes on."""
        raise NotImplementedError

    def advance(self, share):
        """Now and then during the search."""
        raise NotImplementedError

    def freeze(self):
        """At the end of the search: decides."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self.searching = self.model.search = None

    def on_progress(self, share):
        if self.searching is None:
            # Not before: by now a callback has restored an interrupted run.
            self.searching = not self.space.is_frozen()
            if self.searching:
                self._start(share / self.fraction)
        if not self.searching:
            return
        if share >= self.fraction:
            self._freeze()
        else:
            self.advance(share / self.fraction)

    def on_train_end(self, logs=None):
        # A search of the whole training ends with its last step.
        if self.searching:
            self._freeze()

    def _start(self, share):
        restored, self.model.restored = self.model.restored, {}
        if share and restored:
            self.resume(restored)
        else:
            self.begin(share)
        self.model.search = self

    def _freeze(self):
        self.searching, self.model.search = False, None
        self.freeze()

    def steps(self):
        """How many steps the search takes, at least one."""
        per_epoch = self.params["steps"] or STEPS_PER_EPOCH
        return max(1.0, self.fraction * self.params["epochs"] * per_epoch)

    def sum_of_learning_rates(self):
        """Over all of its steps, as the optimizer plans them."""
        return sum_of_learning_rates(inner_optimizer(self.model), self.steps())
