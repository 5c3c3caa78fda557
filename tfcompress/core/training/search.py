"""Base class of the searches that run in the first part of `fit`."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfcompress.core.checks import DIVERGED, check_finite, is_finite
from tfcompress.core.training.averages import restart_averages
from tfcompress.core.training.learning_rate import (
    constant_rate,
    inner_optimizer,
    sum_of_learning_rates,
)
from tfcompress.core.training.progress import REPORTS, ProgressCallback
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.core.training.undo import undone_on_failure
from tfcompress.progress_bar import announced

if TYPE_CHECKING:
    from tfcompress.core.student import Student

# Assumed number of steps per epoch if it is not known.
STEPS_PER_EPOCH = 100
# Factor by which callbacks may change the learning rate before a search follows.
RATE_CHANGE = 1.5
# Key of the learning rate that a search was planned with, in a saved state.
_PLANNED_RATE = "planned_rate"


@contextlib.contextmanager
def errors_as_warnings(work: str) -> Iterator[None]:
    """Warns of errors of a `with` statement at the end of a training.

    An exception there would take the history of all epochs.

    Args:
        work: str. Name of the work, for the warning.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        warnings.warn(
            f"The {work} is expected to run without an error. Received, after the last "
            f"step: {type(error).__name__}: {error} The student has its trained "
            "weights; save it, and train it again.",
            stacklevel=2,
        )


class Search(ProgressCallback):
    """Callback that searches in the first part of `fit`, then freezes the result.

    After an interrupted search the student is not frozen, and the next `fit` searches
    again. `begin` and `freeze` set all variables or none, also where an exception ends
    them. A student that diverged is never frozen. Subclasses define `begin`,
    `search_state`, `resume`, `advance`, `on_rate_change` and `freeze`.

    The state is restored before anything is decided, in the search and after it.

    Args:
        space: search space. `space.is_frozen()` returns whether its search is over.
        recalibrate: `Recalibration` of the student.
        fraction: float in [0, 1]. Share of the training that searches. With 0 a search
            begins and freezes before the first step.

    Attributes:
        searching: bool, or None before the first step. Whether the search is running.
    """

    model: "Student"
    searching: bool | None

    def __init__(self, space: Any, recalibrate: Recalibration, fraction: float) -> None:
        super().__init__()
        self.space = space
        self.recalibrate = recalibrate
        self.fraction = fraction
        # A short search that is updated rarely overshoots its budget.
        self.reports = REPORTS / (fraction or 1.0)

    def begin(self, share: float) -> None:
        """Begins at the first step of a `fit` that searches.

        Args:
            share: float. Share of the search that has passed, above 0 in a `fit` that
                starts at a later epoch.
        """

    def state(self) -> dict[str, Any]:
        return self.search_state() if self.searching else self.frozen_state()

    def search_state(self) -> dict[str, Any]:
        """Returns the arrays and numbers that `resume` needs and no variable holds."""
        raise NotImplementedError

    def frozen_state(self) -> dict[str, Any]:
        """Returns those that `resume_frozen` needs, once the search is over."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Begins, in place of `begin`, in a `fit` that was restored from a backup.

        Args:
            state: result of `search_state()` in the interrupted `fit`.
        """
        raise NotImplementedError

    def resume_frozen(self, state: dict[str, Any]) -> None:
        """Continues a `fit` that was restored from a backup after its search.

        Args:
            state: result of `frozen_state()` in the interrupted `fit`.
        """

    def advance(self, share: float) -> None:
        """Updates the search, about a hundred times, however short it is.

        Args:
            share: float. Share of the search that has passed.
        """
        raise NotImplementedError

    def on_rate_change(self, factor: float) -> None:
        """Adapts to a learning rate that a callback changed.

        Args:
            factor: float above 0. Learning rate planned with, divided by the present
                one.
        """

    def freeze(self) -> None:
        """Freezes the result at the end of the search."""
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.searching = self.model.search = None

    def on_progress(self, share: float) -> None:
        if self.searching is None:
            # Not in `on_train_begin`, where a later callback restores a backup.
            self._start(self._passed(share))
        if not self.searching:
            return
        if share >= self.fraction:
            self._freeze()
        else:
            self._follow_rate()
            self.advance(self._passed(share))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.searching is None and self.params["epochs"] and self.model.restored:
            self._start(1.0)  # from a backup of the last epoch
        # A search that takes the whole training ends here.
        if self.searching and is_finite(self.model):
            if self.fraction < 1.0:
                self.warn_untrained("The search ended")
            with errors_as_warnings("end of the search"):
                self._freeze()
        self.searching, self.model.search = False, None

    def _passed(self, share):
        """The share of the search that has passed, 1 or more after its end."""
        return share / self.fraction if self.fraction else float(share > 0)

    def _start(self, share):
        self.searching = not self.space.is_frozen()
        restored = self.take_restored(share)
        rate = constant_rate(inner_optimizer(self.model))
        self._planned_rate = rate and float(restored.pop(_PLANNED_RATE, rate))
        if self.searching:
            with (
                announced("Preparation of the search"),
                undone_on_failure(self.model.variables),
            ):
                if restored:
                    self.resume(restored)
                else:
                    self.begin(share)
        elif restored:
            self.resume_frozen(restored)
        self.model.search = self

    def training_state(self) -> dict[str, Any]:
        state = super().training_state()
        if self._planned_rate is not None:
            state[_PLANNED_RATE] = self._planned_rate
        return state

    def _freeze(self):
        check_finite(self.model, DIVERGED)
        with (
            announced("End of the search"),
            undone_on_failure(self.model.variables),
        ):
            self.freeze()
        self.searching = False
        restart_averages(self.model)

    def _follow_rate(self):
        rate = constant_rate(inner_optimizer(self.model))
        if rate is not None and self._planned_rate is not None:
            factor = self._planned_rate / rate
            if abs(math.log(factor)) > math.log(RATE_CHANGE):
                self.on_rate_change(factor)
                self._planned_rate = rate

    def steps(self) -> float:
        """Returns the number of steps of the search, at least one."""
        per_epoch = self.steps_per_epoch or STEPS_PER_EPOCH
        return max(1.0, self.fraction * self.params["epochs"] * per_epoch)

    def sum_of_learning_rates(self) -> float:
        """Returns the sum of the learning rates of all steps of the search."""
        return sum_of_learning_rates(inner_optimizer(self.model), self.steps())
