import math

import pytest

from tfcompress.core.training.penalty import DESCENT, Steering


@pytest.mark.parametrize("response", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("pull", [0.0, 0.05])
def test_a_cost_comes_down_to_the_budget_whatever_it_takes(response, pull):
    """A cost that falls with the penalty, at any scale, and would rise by itself."""
    cost = 1000.0
    steering = Steering(cost, 100.0)
    for i in range(100):
        penalty = steering.penalty(i / 100, cost)
        change = pull - response * penalty
        cost *= math.exp(max(-0.2, min(0.2, change)))
    assert cost == pytest.approx(100.0, rel=0.35)


def test_on_its_course_a_cost_is_left_alone():
    steering = Steering(1000.0, 100.0)
    assert steering.penalty(DESCENT / 2, math.sqrt(1e5)) == pytest.approx(0.0)
    assert steering.penalty(DESCENT, 100.0) == pytest.approx(0.0)
    assert steering.penalty(1.0, 90.0) < 0 < steering.penalty(1.0, 110.0)
