"""Parts of the phases that a whole search rarely meets."""

from unittest import mock

import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import counts, used
from tfcompress.schemes.size_constrained.allocation import set_smallest
from tfcompress.schemes.size_constrained.phases import (
    Artifact,
    FineTuning,
    UpdateSchedule,
)


@pytest.mark.parametrize("epochs, interval", [(4, 1 / 20), (20, 1 / 20), (50, 1 / 50)])
def test_updates_are_due_each_epoch_and_twenty_times_or_more(epochs, interval):
    schedule = UpdateSchedule(epochs)
    assert schedule.is_due(0.0)
    schedule.wait(0.5)
    assert schedule.next_share == pytest.approx(0.5 + interval)
    assert not schedule.is_due(0.5 + 0.9 * interval)
    assert schedule.is_due(0.5 + 1.1 * interval)


def fine_tuning(space, overhead):
    """Phase whose artefact takes the codes and the overhead, and its calls."""
    budget, calls = space.allocation.budget, []

    def size_of():
        return budget.size_of(space.codebooks.codes()) - budget.overhead + overhead

    recalibrate = mock.Mock(side_effect=lambda: calls.append("recalibrated"))
    artifact = Artifact(space, recalibrate, size_of)
    return FineTuning(space, artifact, recalibrate), calls


@pytest.mark.parametrize("name, overhead", [
    ("xz, uniform", 37), ("value bits, kmeans", 0), ("bytes", 37),
])  # fmt: skip
def test_budget_is_met_by_removing_weights_or_bits(start_once, name, overhead):
    space = start_once(name)
    budget = space.allocation.budget
    budget.total = 0.8 * budget.size_of(space.codebooks.codes())
    before = sum(counts(space.codebooks).values())
    phase, calls = fine_tuning(space, overhead)
    phase.meet_budget()
    assert (0.85 if budget.sparse else 0.6) < used(space) <= 1.0
    assert (sum(counts(space.codebooks).values()) < before) == budget.sparse
    assert calls == ["recalibrated"]  # estimates save further files
    assert budget.overhead == overhead


def test_budget_that_is_met_leaves_the_weights(start_once):
    space = start_once("xz, uniform")
    before = counts(space.codebooks)
    phase, calls = fine_tuning(space, 0)
    phase.meet_budget()
    assert counts(space.codebooks) == before and not calls


def test_budget_below_the_overhead_leaves_the_weights_and_is_remembered(start_once):
    space = start_once("xz, uniform")
    before = counts(space.codebooks), space.codebooks.bits
    phase, calls = fine_tuning(space, 600)
    phase.meet_budget()
    assert calls and (counts(space.codebooks), space.codebooks.bits) == before
    assert space.is_frozen() and space.codebooks.is_over_budget()
    phase, _ = fine_tuning(space, 0)
    phase.meet_budget()
    assert space.is_frozen() and not space.codebooks.is_over_budget()


def test_smallest_allocation_is_the_last_resort(start_once):
    """Weights alone do not suffice where layers have more bits than the fewest."""
    space = start_once("xz, uniform")
    codebooks = space.codebooks
    set_smallest(codebooks)
    least = space.allocation.budget.size_of(codebooks.codes())
    masks = {name: np.ones(x.shape, bool) for name, x in codebooks.masks().items()}
    codebooks.fit(codebooks.kernels(), masks, dict.fromkeys(masks, 8))
    space.allocation.budget.total = least
    fine_tuning(space, 0)[0].meet_budget()
    assert used(space) <= 1.0 and not codebooks.is_over_budget()
