"""Batch normalization statistics of the present weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.core.training.averages import uses_averages
from tfcompress.core.training.compiled import compiled
from tfcompress.graph.levels.biases import move_means, round_trained_biases
from tfcompress.graph.rounded_norms import move_statistics
from tfcompress.progress_bar import progress_bar


class RecalibrateBatchNorm(keras.callbacks.Callback):
    """Callback that recalibrates batch normalization before its statistics are read.

    Low-bit weights jump between steps, and moving averages lag: a model that trains
    well can evaluate at chance. The statistics are therefore recomputed before each
    validation and at the end of each epoch and of the training.

    Args:
        recalibrate: `Recalibration` of the model.
    """

    def __init__(self, recalibrate: "Recalibration") -> None:
        super().__init__()
        self.recalibrate = recalibrate
        self.training = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.training = True

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.recalibrate.stale = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.training:
            self.recalibrate.refresh()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.recalibrate.refresh()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        # `fit` has just replaced the weights by their averages.
        self.recalibrate.stale |= uses_averages(self.model)
        self.recalibrate.refresh()
        self.recalibrate.finish()
        self.training = False


def random_states(model: keras.Model) -> list[Any]:
    """Returns the variables of a model's random numbers, such as those of dropout."""
    weights = {id(variable) for variable in model.non_trainable_weights}
    return [x for x in model.non_trainable_variables if id(x) not in weights]


class Recalibration:
    """Function that sets batch normalization statistics to their mean over batches.

    It reaches the BatchNormalizations within other layers and models at any depth, and
    skips those that are not trainable. With learned ranges of 8 bits, means then move
    by less than a unit of int8 biases, see `move_means`. If the scheme rounds
    normalizations, means and variances do, see `move_statistics`. Nothing else changes:
    neither the state of quantizers nor that of random numbers. The first call compiles
    the forward pass, so one object serves a whole `fit`.

    Args:
        model: Functional or Sequential model.
        batches: list of model inputs, about `SAMPLES` samples in all. Each batch has
            the same weight.

    Attributes:
        stale: bool. Whether weights may have changed since the last call.
    """

    def __init__(self, model: keras.Model, batches: list[Any]) -> None:
        self.model = model
        self.batches = batches
        self.stale = False
        self.norms = [
            layer
            for layer in keras_private.flatten_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization)
            and layer.built
            and layer.trainable
        ]
        self.variables = [
            variable
            for norm in self.norms
            for variable in (norm.moving_mean, norm.moving_variance)
        ]
        scheme = getattr(model, "scheme", None)
        self._rounds_norms = scheme is not None and scheme.rounds_norms()
        run = getattr(model, "training_run", None)
        self._own_pass = contextlib.nullcontext if run is None else run.own_pass
        self._state = model.non_trainable_variables
        self._seeds = random_states(model)
        self._forward = compiled(model, lambda inputs: self._statistics(*inputs))
        self._outputs = compiled(model, self._on_batch_statistics)

    def refresh(self) -> None:
        """Sets the statistics if they are stale."""
        if self.stale:
            self()

    def __call__(self) -> None:
        """Sets the moving means and variances of the model."""
        self.stale = False
        with self._own_pass():
            self._set_statistics()
            self._move()

    def move(self) -> None:
        """Moves the present statistics as each call does, without new ones."""
        with self._own_pass():
            self._move()

    def _move(self):
        with np.errstate(invalid="ignore"):  # of a training that diverged
            move_means(self.model)
            if self._rounds_norms:
                move_statistics(self.model)

    def outputs(self, inputs: Any) -> Any:
        """Returns the model's outputs, normalized by the statistics of their batch.

        No variable changes. The first call compiles the forward pass.

        Args:
            inputs: model inputs, one batch.

        Returns:
            NumPy arrays in the structure of the model's outputs.
        """
        return self._outputs(inputs)

    @contextlib.contextmanager
    def batch_statistics(self) -> Iterator[bool]:
        """Lets calls of the model normalize by the statistics of their batch.

        It serves functions that are compiled elsewhere. All changes of the model's
        state are undone.

        Yields:
            bool. The argument `training` of such calls.
        """
        with self._own_pass(), self._restored_state():
            yield bool(self.norms)

    def finish(self) -> None:
        """Rounds biases that no normalization sets, at the end of a training."""
        with self._own_pass(), np.errstate(invalid="ignore"):
            round_trained_biases(self.model)

    def _set_statistics(self):
        if not self.norms or len(self.batches) == 0:
            return
        momenta = [norm.momentum for norm in self.norms]
        seen = []
        try:
            for norm in self.norms:
                norm.momentum = 0.0  # its statistics become those of the last batch
            title = "Batch normalization statistics"
            with progress_bar(title, len(self.batches)) as bar:
                for index, inputs in enumerate(bar.over(self.batches)):
                    seen.append(self._forward((np.array(index, "int32"), inputs)))
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
        for variable, values in zip(
            self.variables, zip(*seen, strict=True), strict=True
        ):
            variable.assign(np.mean(values, axis=0))

    def _statistics(self, index, inputs):
        """The statistics of one batch."""
        with self._restored_state():
            for seed in self._seeds:  # each batch draws its own numbers
                seed.assign(ops.add(seed, ops.cast(index, seed.dtype)))
            self.model(inputs, training=True)
            return [ops.copy(variable) for variable in self.variables]

    def _on_batch_statistics(self, inputs):
        with self.batch_statistics() as training:
            return self.model(inputs, training=training)

    @contextlib.contextmanager
    def _restored_state(self):
        """Undoes all changes of the model's state, also in a compiled function."""
        # Copies: on TensorFlow a tensor of a variable may be the variable itself.
        before = [ops.copy(variable) for variable in self._state]
        yield
        for variable, value in zip(self._state, before, strict=True):
            variable.assign(value)
