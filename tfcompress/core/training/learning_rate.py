"""The learning rate that an optimizer takes, now and in steps to come."""

import numpy as np
from keras import ops

from tfcompress.compat import keras_private


def inner_optimizer(model):
    """A compiled model's optimizer, without the wrapper that scales losses."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def rate_of_step(optimizer):
    """The learning rate of an optimizer's step, for constraints, which run behind it.

    Returns:
        Scalar float32 tensor; 0 where the step only accumulates gradients, as
        constraints run behind those steps as well.
    """
    rate = ops.cast(optimizer.learning_rate, "float32")
    every = optimizer.gradient_accumulation_steps
    if not every:
        return rate
    # Of several steps one updates; the public `iterations` does not count the others.
    steps = ops.convert_to_tensor(keras_private.step_count(optimizer)) + 1
    updates = steps % every == 0
    return rate * ops.cast(updates, "float32")


def sum_of_learning_rates(optimizer, steps):
    """Over the updates in the steps to come, as planned; a float above 0."""
    updates = steps / (optimizer.gradient_accumulation_steps or 1)
    schedule = keras_private.learning_rate_schedule(optimizer)
    if not callable(schedule):
        rate = float(ops.convert_to_numpy(optimizer.learning_rate))
        return updates * max(rate, 1e-12)
    done = int(ops.convert_to_numpy(keras_private.step_count(optimizer)))
    points = done + np.linspace(0, steps, 50)
    rates = [float(ops.convert_to_numpy(schedule(int(step)))) for step in points]
    return updates * max(float(np.mean(rates)), 1e-12)
