import math

import keras
import pytest

from tfcompress.schemes.steering import DESCENT, Steering, sum_of_learning_rates


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


def test_the_sum_of_learning_rates():
    optimizer = keras.optimizers.SGD(0.1)
    assert sum_of_learning_rates(optimizer, 50) == pytest.approx(5.0)
    assert sum_of_learning_rates(keras.optimizers.SGD(0.0), 50) > 0
    decay = keras.optimizers.schedules.CosineDecay(0.1, 50)
    optimizer = keras.optimizers.SGD(decay)
    exact = sum(float(decay(step)) for step in range(50))
    assert sum_of_learning_rates(optimizer, 50) == pytest.approx(exact, rel=0.03)
    # Of the steps to come: the second half has a sixth of the sum.
    optimizer.iterations.assign(25)
    exact = sum(float(decay(step)) for step in range(25, 50))
    assert sum_of_learning_rates(optimizer, 25) == pytest.approx(exact, rel=0.1)
