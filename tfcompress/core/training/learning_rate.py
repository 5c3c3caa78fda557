"""Learning rates of an optimizer, of the present step and of later ones."""

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.types import Tensor


def training_model(model: keras.Model) -> keras.Model:
    """Returns the model whose `fit` trains a model: another one may contain it.

    It has the optimizer and the compiled training step.
    """
    run = getattr(model, "training_run", None)
    return model if run is None or run.trainer is None else run.trainer


def inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Returns the optimizer that trains a model, without one that scales losses."""
    optimizer = training_model(model).optimizer
    return getattr(optimizer, "inner_optimizer", optimizer)


def rate_of_step(optimizer: keras.optimizers.Optimizer) -> Tensor:
    """Returns the learning rate of a step, for the constraints after the step.

    Returns:
        Scalar float32 tensor. It is 0 if the step only accumulates gradients, since
        constraints run after such steps as well.
    """
    rate = ops.cast(optimizer.learning_rate, "float32")
    every = optimizer.gradient_accumulation_steps
    if not every:
        return rate
    # Constraints run before the step is counted.
    steps = ops.convert_to_tensor(keras_private.step_count(optimizer)) + 1
    updates = steps % every == 0
    return rate * ops.cast(updates, "float32")


def constant_rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Returns the learning rate, at least 1e-12, or None if there is a schedule.

    Args:
        optimizer: `keras.optimizers.Optimizer`, without a wrapper.
    """
    if callable(keras_private.learning_rate_schedule(optimizer)):
        return None
    return max(float(ops.convert_to_numpy(optimizer.learning_rate)), 1e-12)


def sum_of_learning_rates(optimizer: keras.optimizers.Optimizer, steps: float) -> float:
    """Returns the sum of the learning rates of the updates in the next steps.

    A schedule is sampled at 50 points. Without a schedule the present rate counts.

    Args:
        optimizer: `keras.optimizers.Optimizer`, without a wrapper.
        steps: float. Number of steps, those that only accumulate gradients included.

    Returns:
        float above 0.
    """
    updates = steps / (optimizer.gradient_accumulation_steps or 1)
    rate = constant_rate(optimizer)
    if rate is not None:
        return updates * rate
    schedule = keras_private.learning_rate_schedule(optimizer)
    done = int(ops.convert_to_numpy(keras_private.step_count(optimizer)))
    points = done + np.linspace(0, steps, 50)
    rates = [float(ops.convert_to_numpy(schedule(int(step)))) for step in points]
    return updates * max(float(np.mean(rates)), 1e-12)
