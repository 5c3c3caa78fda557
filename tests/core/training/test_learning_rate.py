"""Learning rates of the present step and of later ones."""

import keras
import numpy as np
import pytest

from tfcompress.core.training.learning_rate import rate_of_step, sum_of_learning_rates


def test_sum_of_learning_rates_of_constants_and_schedules():
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


@pytest.mark.parametrize("rate", ["constant", "schedule"])
def test_learning_rate_is_zero_in_steps_that_only_accumulate_gradients(rate):
    """Of 12 steps after 3 others, those numbered 3, 7 and 11 update."""
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 15)
    optimizer = keras.optimizers.SGD(
        schedule if rate == "schedule" else 0.1, gradient_accumulation_steps=4
    )
    kernel = keras.Variable(np.ones(2, "float32"))
    rates = []
    for step in range(15):
        if step == 3:
            planned = sum_of_learning_rates(optimizer, 12)
        rates.append(float(rate_of_step(optimizer)))
        optimizer.apply([np.zeros(2, "float32")], [kernel])
    updates = [step for step, rate in enumerate(rates) if rate > 0]
    assert updates == [3, 7, 11]
    expected = [float(schedule(i)) if rate == "schedule" else 0.1 for i in updates]
    np.testing.assert_allclose([rates[i] for i in updates], expected, rtol=1e-6)
    assert planned == pytest.approx(sum(expected), rel=0.25)  # a coarse sum
