"""Phases of a size-constrained training, in their order."""

from collections.abc import Callable

from tfcompress.core.training.recalibration import Recalibration
from tfcompress.progress_bar import announced
from tfcompress.schemes.size_constrained.allocation import set_smallest
from tfcompress.schemes.size_constrained.search_space import SizeSpace

# Multiple of the budget that ADMM's projections keep and the descent begins with.
RELAXATION = 5.0
# Relative decrease of a layer's loss that other bits must bring while it trains
# quantized. It has to learn its values again, and bits that change back leave it with
# fewer weights.
MIN_GAIN = 0.1
# A search has at least this many projections or allocations.
MIN_UPDATES = 20
# Share of the nominal bits that a removal aims at, as only the file tells its size.
SHRINK_MARGIN = 0.996
# An estimated size is certainly within the budget if it is smaller by this share, and
# by this number of bytes: what xz finds in a file depends on all of its parts.
CLOSE_SHARE, CLOSE_BYTES = 0.002, 200
MAX_SHRINKS = 10
# Title of progress bars.
MEETING = "Size of the file"


class UpdateSchedule:
    """Schedule of projections and allocations, in shares of the search.

    Attributes:
        next_share: float. Share of the search at which the next update is due.

    Args:
        epochs: float. Epochs of the search.
    """

    def __init__(self, epochs: float) -> None:
        self._interval = 1.0 / max(MIN_UPDATES, epochs)
        self.next_share = 0.0

    def is_due(self, share: float) -> bool:
        """Whether an update is due at a share of the search."""
        return share >= self.next_share

    def wait(self, share: float) -> None:
        """Sets the next update, after one at a share of the search."""
        self.next_share = share + self._interval


class Artifact:
    """Finished artefact of a student, built to measure its size.

    Attributes:
        is_measured: bool. Whether the budget's overhead is that of a measurement.

    Args:
        space: `SizeSpace` of the student, with a budget.
        recalibrate: `Recalibration` of the student.
        size_of: function without arguments. Returns the size of the finished artefact
            in the budget's unit.
    """

    def __init__(
        self,
        space: SizeSpace,
        recalibrate: Recalibration,
        size_of: Callable[[], float],
    ) -> None:
        self.space = space
        self.recalibrate = recalibrate
        self._size_of = size_of
        self.is_measured = False

    def estimate(self) -> float:
        """Returns the size with the overhead of the last measurement.

        The overhead changes little, as the graph stays and floats remain floats.
        """
        budget = self.space.allocation.budget
        return budget.estimate_of(self.space.codebooks.codes())

    def measure(self) -> tuple[float, float]:
        """Measures the artefact and updates the budget's overhead.

        The overhead changes as well: floats train, and xz finds more or less in them.

        Returns:
            `(size, coded)`: size of all and of the codes, in the budget's unit.
        """
        budget = self.space.allocation.budget
        with announced(MEETING):
            self.recalibrate.move()
            coded = budget.measure(self.space.codebooks.codes()) - budget.overhead
            size = self._size_of()
        budget.overhead = size - coded
        self.is_measured = True
        return size, coded


class Phase:
    """Part of a training; base class, whose hooks change nothing.

    Attributes:
        trains_quantized: bool. Whether steps compute with codebooks.
    """

    trains_quantized = False

    def on_epoch_begin(self) -> None:
        """Called at the beginning of an epoch, before `advance`."""

    def advance(self, share: float) -> None:
        """Called before a step of the search.

        Args:
            share: float in [0, 1). Share of the search that has passed.
        """

    def prepare_validation(self) -> None:
        """Called before a validation, and at the end of an epoch."""

    def meet_budget(self) -> None:
        """Called once the weights of the end of an epoch have changed."""


class AdmmPhase(Phase):
    """Float kernels are drawn to targets that projections update.

    The projections meet a multiple of the budget, `RELAXATION`. In each epoch one of
    them precedes the validation, so that it sees projected weights (arXiv 1910.05897,
    Section 3).

    Attributes:
        rho: float. Penalty parameter.

    Args:
        space: `SizeSpace` with a budget.
        schedule: `UpdateSchedule` of the projections.
    """

    def __init__(self, space: SizeSpace, schedule: UpdateSchedule) -> None:
        self.space = space
        self.schedule = schedule
        self.rho = 0.0
        self._share = 0.0
        self._projected = False  # for a validation of this epoch

    def start(self, rho: float) -> None:
        """Sets the penalty parameter and the targets."""
        self.rho = rho
        self._set_targets()

    def on_epoch_begin(self) -> None:
        self._projected = False

    def advance(self, share: float) -> None:
        self._share = share
        if self.schedule.is_due(share):
            self._project()
        self.space.codebooks.set_quantizing(False)

    def prepare_validation(self) -> None:
        if not self._projected:
            self._projected = True
            self._project()
            self.space.codebooks.set_quantizing(True)

    def _project(self):
        with announced("Projections of ADMM"):
            self.space.admm.project(self.space.allocation, RELAXATION)
        self.schedule.wait(self._share)
        self._set_targets()

    def _set_targets(self):
        self.space.admm.step.assign(self.rho, self.space.admm.targets())


class DescentPhase(Phase):
    """Kernels train quantized while their allocation comes down to the budget.

    The logarithm of the size follows a straight line. Each allocation sets zeros and
    bits of all layers together.

    Attributes:
        begin: float. Share of the search that precedes the phase.
        relaxation: float. Multiple of the budget where it begins; 0 before.

    Args:
        space: `SizeSpace` with a budget.
        schedule: `UpdateSchedule` of the allocations.
        artifact: `Artifact` of the student.
    """

    trains_quantized = True

    def __init__(
        self, space: SizeSpace, schedule: UpdateSchedule, artifact: Artifact
    ) -> None:
        self.space = space
        self.schedule = schedule
        self.artifact = artifact
        self.begin = 0.0
        self.relaxation = 0.0

    def advance(self, share: float) -> None:
        if not self.relaxation:
            if self.begin:  # else the search has just measured it
                self.artifact.measure()
            self._start()
        elif not self.schedule.is_due(share):
            return
        passed = (share - self.begin) / (1.0 - self.begin)
        self.space.allocation.tighten(self.relaxation ** (1.0 - passed), MIN_GAIN)
        self.schedule.wait(share)

    def _start(self):
        """Begins with the zeros of the start or of ADMM.

        Weights that are removed early leave time to learn without them; bits follow.
        """
        self.space.admm.stop()
        self.space.codebooks.set_quantizing(True)
        self.space.allocation.tighten(RELAXATION)
        self.relaxation = max(1.0, min(RELAXATION, self.space.allocation.multiple))


class FineTuning(Phase):
    """Weights train at frozen bits, and the file is kept within the budget.

    Args:
        space: `SizeSpace` with a budget.
        artifact: `Artifact` of the student.
        recalibrate: `Recalibration` of the student.
    """

    trains_quantized = True

    def __init__(
        self, space: SizeSpace, artifact: Artifact, recalibrate: Recalibration
    ) -> None:
        self.space = space
        self.artifact = artifact
        self.recalibrate = recalibrate
        self._met = False  # in this epoch

    def on_epoch_begin(self) -> None:
        self._met = False

    def prepare_validation(self) -> None:
        # Trained weights may take more bytes than before. Later epochs make up for
        # those that are removed now. Other callbacks may keep what they see.
        if not self._met:
            self._met = True
            self.recalibrate.refresh()
            # The end of the training makes the file in any case.
            if not self._is_clearly_met():
                self.meet_budget()

    def meet_budget(self) -> None:
        """Removes the smallest weights until the artefact is within the budget.

        Where that does not suffice, the smallest allocation remains. If it exceeds the
        budget as well, zeros and bits stay as they were, and the codebooks tell of it:
        an error here would take the history of the whole training.
        """
        with announced(MEETING):
            codebooks = self.space.codebooks
            before = codebooks.masks(), codebooks.bits
            is_met = self._shrink_to_budget()
            if not is_met:
                codebooks.fit(codebooks.kernels(), *before)
                self.recalibrate()
                self.artifact.measure()
            codebooks.freeze(is_met)

    def _is_clearly_met(self):
        if not self.artifact.is_measured:
            return False
        total = self.space.allocation.budget.total
        return self.artifact.estimate() <= (1 - CLOSE_SHARE) * total - CLOSE_BYTES

    def _shrink_to_budget(self):
        """Shrinks the codes, and returns whether the artefact meets the budget."""
        total = self.space.allocation.budget.total
        for _ in range(MAX_SHRINKS):
            size, coded = self.artifact.measure()
            if size <= total:
                return True
            if not self._remove_excess(size, coded):
                break
            self.recalibrate()
        set_smallest(self.space.codebooks)
        self.recalibrate()
        return self.artifact.measure()[0] <= total

    def _remove_excess(self, size, coded):
        """Removes weights until the estimate meets the budget, and returns if it does.

        A measurement makes a file, which takes many times as long as an estimate.
        """
        total = self.space.allocation.budget.total
        for attempt in range(1, MAX_SHRINKS + 1):
            # The whole excess has to come from the codes, which often shrink by less
            # than their nominal bits: each attempt removes more.
            share = 1.0 - attempt * (size - total) / coded
            if share <= 0:
                return False
            self.space.allocation.shrink(SHRINK_MARGIN * share)
            before, size = size, self.artifact.estimate()
            if size <= total:
                return True
            coded -= before - size
        return False
