"""Size-constrained search in `fit`: ADMM, descent to the budget, fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

from tfcompress.compat import keras_private
from tfcompress.core.checks import is_finite
from tfcompress.core.training.averages import uses_averages
from tfcompress.core.training.learning_rate import (
    inner_optimizer,
    sum_of_learning_rates,
    training_model,
)
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.core.training.search import (
    STEPS_PER_EPOCH,
    Search,
    errors_as_warnings,
)
from tfcompress.schemes.size_constrained.phases import (
    MIN_GAIN,
    RELAXATION,
    AdmmPhase,
    Artifact,
    DescentPhase,
    FineTuning,
    Phase,
    UpdateSchedule,
)
from tfcompress.schemes.size_constrained.search_space import SizeSpace

# Share of the search that ADMM takes, where it is used.
ADMM_FRACTION = 0.3
# The default `rho` is this over the sum of ADMM's learning rates.
RHO_SCALE = 2.0
# Codebooks are fitted to the weights that train with them this often in an epoch.
FITS_PER_EPOCH = 20


class SizeSearch(Search):
    """Search that runs ADMM, comes down to the budget, and keeps it in fine-tuning.

    `AdmmPhase` trains float kernels. ADMM soon keeps the zeros that it began with, and
    float kernels do not show how well quantized ones do without a weight. So it meets a
    multiple of the budget, and is left out where that pays for every weight.

    `DescentPhase` trains quantized and takes the rest of the search. Its last
    allocation meets the budget. `FineTuning` follows: bits stay, and so do zeros, but
    for those that keep the file within the budget. Codebooks follow the weights in both
    phases. A student whose search was interrupted has the zeros and bits of its last
    allocation.

    Args:
        space: `SizeSpace` of the student, with its budget.
        recalibrate, fraction: see `Search`.
        rho: float or None. Penalty parameter of ADMM; None chooses it.
        size_of: function without arguments. Returns the size of the student's finished
            artefact, in the budget's unit.
    """

    def __init__(
        self,
        space: SizeSpace,
        recalibrate: Recalibration,
        fraction: float,
        rho: float | None,
        size_of: Callable[[], float],
    ) -> None:
        super().__init__(space, recalibrate, fraction)
        self.rho = rho
        self.artifact = Artifact(space, recalibrate, size_of)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.schedule = UpdateSchedule(self.fraction * self.params["epochs"])
        self.admm = AdmmPhase(self.space, self.schedule)
        self.descent = DescentPhase(self.space, self.schedule, self.artifact)
        self.fine_tuning = FineTuning(self.space, self.artifact, self.recalibrate)
        self.phase = Phase()
        self.space.admm.step.attach(training_model(self.model).optimizer)
        keras_private.rebuild_train_function(training_model(self.model))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._fits = 0  # in this epoch
        self.phase.on_epoch_begin()
        super().on_epoch_begin(epoch, logs)

    def on_progress(self, share: float) -> None:
        super().on_progress(share)
        if not self.searching:
            self.phase = self.fine_tuning

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_train_batch_begin(batch, logs)
        part = batch * FITS_PER_EPOCH // (self.steps_per_epoch or STEPS_PER_EPOCH)
        if part > self._fits and self.phase.trains_quantized:
            self._fits = part
            self.sync()
            self.space.codebooks.refit()

    def begin(self, share: float) -> None:
        self.artifact.measure()
        if self.space.codebooks.is_preliminary():
            self.space.start()
        skips_admm = self.space.allocation.affords_all(RELAXATION)
        self.descent.begin = 0.0 if skips_admm else ADMM_FRACTION
        self.schedule.next_share = share + 1.0 / self.steps()
        rho = self.rho
        if rho is None:
            steps = ADMM_FRACTION * self.steps()
            optimizer = inner_optimizer(self.model)
            rho = RHO_SCALE / sum_of_learning_rates(optimizer, steps)
        self.admm.start(rho)

    def search_state(self) -> dict[str, float]:
        # The keys are the file format.
        return {
            "admm": self.descent.begin,
            "pull": self.admm.rho,
            "next_projection": self.schedule.next_share,
            "loose": self.descent.relaxation,
            **self.frozen_state(),
        }

    def frozen_state(self) -> dict[str, float]:
        budget = self.space.allocation.budget
        if not self.artifact.is_measured:
            return {}
        return {
            "nominal_per_real": budget.nominal_per_real,
            "overhead": budget.overhead,
            "xz_per_fast": budget.xz_per_fast,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        self.resume_frozen(state)
        self.descent.begin = float(state["admm"])
        self.admm.rho = float(state["pull"])
        self.schedule.next_share = float(state["next_projection"])
        self.descent.relaxation = float(state["loose"])
        if not self.descent.relaxation:  # files have no variables of the step
            self.admm.start(self.admm.rho)

    def resume_frozen(self, state: Mapping[str, Any]) -> None:
        budget = self.space.allocation.budget
        budget.nominal_per_real = float(state["nominal_per_real"])
        budget.overhead = float(state["overhead"])
        budget.xz_per_fast = float(state.get("xz_per_fast", 1.0))  # in no early file
        self.artifact.is_measured = True

    def on_rate_change(self, factor: float) -> None:
        if self.rho is None and not self.descent.relaxation:
            self.admm.start(self.admm.rho * factor)

    def advance(self, share: float) -> None:
        self.phase = self.admm if share < self.descent.begin else self.descent
        self.phase.advance(share)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._prepare_validation()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._prepare_validation()

    def _prepare_validation(self):
        if is_finite(self.model):
            self.phase.prepare_validation()

    def on_averaged(self) -> None:
        """Follows weights that were replaced by their moving averages."""
        if self.phase.trains_quantized and is_finite(self.model):
            self.space.codebooks.refit()
            self.recalibrate()
            self.phase.meet_budget()

    def freeze(self) -> None:
        self.space.admm.stop()
        self.artifact.measure()
        self.space.allocation.tighten(min_gain=MIN_GAIN, exact=True)
        self.space.codebooks.freeze()
        self.space.codebooks.set_quantizing(True)
        self.recalibrate()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        self.space.admm.step.detach()
        if not self.space.is_frozen() or not is_finite(self.model):
            return
        with errors_as_warnings("adjustment to the size"):
            if uses_averages(self.model):  # the weights are their averages by now
                self.space.codebooks.refit()
            self.recalibrate()
            self.fine_tuning.meet_budget()

    def on_interrupt(self) -> None:
        self.space.admm.step.detach()
        self.space.codebooks.set_quantizing(True)
