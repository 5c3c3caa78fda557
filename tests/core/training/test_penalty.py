"""Penalty multiplier, on costs that respond to the penalty."""

import math

import pytest

from tfcompress.core.training.penalty import DESCENT, PenaltyMultiplier


@pytest.mark.parametrize("response", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("growth", [0.0, 0.05])
def test_penalty_brings_a_cost_down_to_the_budget_at_any_scale(response, growth):
    """A cost that falls with the penalty and grows without it."""
    cost = 1000.0
    multiplier = PenaltyMultiplier(cost, 100.0)
    for i in range(100):
        penalty = multiplier.penalty(i / 100, cost)
        change = growth - response * penalty
        cost *= math.exp(max(-0.2, min(0.2, change)))
    assert cost == pytest.approx(100.0, rel=0.35)


def test_penalty_has_the_sign_of_the_deviation_from_the_target():
    multiplier = PenaltyMultiplier(1000.0, 100.0)
    assert multiplier.penalty(DESCENT / 2, math.sqrt(1e5)) == pytest.approx(0.0)
    assert multiplier.penalty(DESCENT, 100.0) == pytest.approx(0.0)
    assert multiplier.penalty(1.0, 90.0) < 0 < multiplier.penalty(1.0, 110.0)


def test_multiplier_grows_on_one_side_of_the_target_and_is_halved_at_a_crossing():
    multiplier = PenaltyMultiplier(100.0, 100.0, multiplier=1.0)
    multiplier.penalty(0.01, 200.0)
    grown = multiplier.multiplier
    assert grown == pytest.approx(math.exp(20 * 0.01))
    multiplier.penalty(0.02, 50.0)
    assert multiplier.multiplier == pytest.approx(grown / 2)


def test_state_has_the_names_of_saved_students():
    names = {"start", "goal", "began", "reached", "multiplier", "deviation"}
    assert vars(PenaltyMultiplier(1.0, 1.0)).keys() == names
