"""Moving averages of the weights that an optimizer keeps with `use_ema=True`."""

from collections.abc import Iterator

import keras

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import inner_optimizer
from tfcompress.layers.kernel import value_of


def uses_averages(model: keras.Model) -> bool:
    """Returns whether a compiled model's optimizer keeps moving averages.

    `fit` then replaces the weights by them after its last epoch.
    """
    return any(optimizer.use_ema for optimizer in _optimizers(model))


def restart_averages(model: keras.Model) -> None:
    """Sets the moving averages of the weights to the present weights.

    Averages over weights from before a jump, such as that at the end of a search, fit
    neither side of it.
    """
    for optimizer in _optimizers(model):
        for variable, average in keras_private.averages(optimizer):
            average.assign(value_of(variable))


def _optimizers(model: keras.Model) -> Iterator[keras.optimizers.Optimizer]:
    optimizer = inner_optimizer(model)
    yield from getattr(optimizer, "optimizers", [optimizer])
