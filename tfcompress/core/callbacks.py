"""Trainings of a student in which its own `fit` does not run."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.compat import keras_private
from tfcompress.core.training.data import take_inputs
from tfcompress.core.training.learning_rate import training_model
from tfcompress.core.training.progress import interrupt
from tfcompress.core.training.recalibration import RecalibrateBatchNorm, Recalibration
from tfcompress.core.training.user_callbacks import arranged, warn_if_unmet
from tfcompress.layers import TrainingForm
from tfcompress.progress_bar import verbosity

if TYPE_CHECKING:
    from tfcompress.core.scheme import Scheme
    from tfcompress.core.student import Student


def callbacks(
    student: "Student", data: Any, batch_size: int | None = None
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that train a student outside of its own `fit`.

    `student.fit` runs them itself. They are needed if another model contains the
    student, and in your own loops. Without them a student that is called with
    `training=True` raises an error.

    A loop passes the callbacks to a `CallbackList`, whose `model` is compiled with the
    optimizer of the loop. Its loss has `sum(student.losses)` as a term. A step that is
    compiled with `tf.function` must be called for the first time within the loop. With
    JAX the loop writes its state to the variables before each call of a callback, and
    reads it again afterwards.

    Args:
        student: `Student` from `tfcompress.compress`.
        data: training inputs of the student, as in `keras.Model.fit`: arrays, or
            batches in a form that can be read more than once. Some of them are read,
            see `tfcompress.core.training.data.take_inputs`.
        batch_size: int or None. Samples per batch of arrays; None is 32. A student
            that computes on one size alone, such as a stateful one, needs it.

    Returns:
        List of `keras.callbacks.Callback` for one training at a time.

    Raises:
        TypeError: if `student` is no student.
        ValueError: if `data` can be read only once, or has no samples. In training, if
            the model that is trained does not contain the student or has no optimizer,
            or if the student has a distillation and another model is trained.

    Warns:
        UserWarning: at the end of a training, if the student does not meet the goal of
            its scheme.

    Examples:

    >>> outer.fit(x, y, epochs=20, callbacks=tfc.callbacks(student, x))

    >>> run = keras.callbacks.CallbackList(
    ...     tfc.callbacks(student, x), model=student, epochs=epochs, steps=steps
    ... )
    >>> run.on_train_begin()
    >>> for epoch in range(epochs):
    ...     run.on_epoch_begin(epoch)
    ...     for step, batch in enumerate(batches):
    ...         run.on_train_batch_begin(step)
    ...         train_step(batch)
    ...         run.on_train_batch_end(step)
    ...     run.on_epoch_end(epoch)
    >>> run.on_train_end()
    """
    if getattr(student, "scheme", None) is None or student.scheme is None:
        raise TypeError(
            "A student is expected, as `tfcompress.compress` makes it. Received: an "
            f"object of type {type(student).__name__}."
        )
    if isinstance(data, Iterator):
        raise ValueError(
            "`data` is expected in a form that can be read more than once, since `fit` "
            f"reads it too. Received: an object of type {type(data).__name__}. Pass "
            "arrays, a dataset, or a list of some batches."
        )
    batches = take_inputs(data, batch_size, model=student).batches
    if len(batches) == 0:
        raise ValueError(
            "`data` is expected to have training inputs of the student. Received: an "
            f"object of type {type(data).__name__} without any."
        )
    own, recalibrate = scheme_callbacks(student, student.scheme, batches)
    return [SchemeCallbacks(student, own, recalibrate)]


def scheme_callbacks(
    student: "Student", scheme: "Scheme", batches: list[Any]
) -> tuple[list[keras.callbacks.Callback], Recalibration]:
    """Returns the callbacks that any training of a student needs.

    Args:
        student: the `Student`.
        scheme: its scheme.
        batches: list of its inputs.

    Returns:
        `(callbacks, recalibrate)`, with the `Recalibration` of the student.
    """
    recalibrate = Recalibration(student, batches)
    own = [
        *scheme.callbacks(student, recalibrate),
        RecalibrateBatchNorm(recalibrate),
        CheckLosses(student.training_run),
        *student.teaching_callbacks(),
    ]
    return own, recalibrate


class TrainingRun:
    """Training of a student: the model that runs it, with the scheme's callbacks.

    The student's layers share it, and check it when they are called in training. A part
    of the student in another model is therefore found as well.

    Attributes:
        trainer: `keras.Model` whose `fit` or loop runs; None outside of a training with
            the scheme's callbacks.
        is_own_fit: bool. Whether `student.fit` runs.
        losses_read: bool. Whether the student's losses were ever read by a training.
    """

    def __init__(self, student: "Student") -> None:
        self.trainer: keras.Model | None = None
        self.losses_read = False
        self._student = student
        self.is_own_fit = False
        self._own_passes = 0
        layers = [
            layer
            for layer in keras_private.flatten_layers(student)
            if isinstance(layer, TrainingForm)
        ]
        for layer in layers:
            layer.training_run = self
        keras_private.call_when_losses_are_read(layers[0], self._note_losses)

    def _note_losses(self):
        self.losses_read = True

    def check(self) -> None:
        """Checks that a call in training belongs to a training with the callbacks.

        Raises:
            ValueError: if it does not.
        """
        student = self._student
        if self.trainer is not None or self._own_passes:
            return
        if not student.trainable_variables:  # a part that only extracts features
            return
        if student.scheme is not None and student.scheme.needs_callbacks(student):
            raise ValueError(
                f"A student trains by its own `fit`, or with the callbacks of its "
                f"{type(student.scheme).__name__} scheme. Received: '{student.name}', "
                "called with training=True while neither runs. If another model "
                "contains it, add them to that model's fit: "
                "fit(..., callbacks=tfcompress.callbacks(student, inputs)). In a loop "
                "of your own, or with train_on_batch, run them by a "
                "keras.callbacks.CallbackList, see the example of "
                "`tfcompress.callbacks`."
            )

    @contextlib.contextmanager
    def own_pass(self) -> Iterator[None]:
        """Allows calls with `training=True` that train nothing, such as statistics."""
        self._own_passes += 1
        try:
            yield
        finally:
            self._own_passes -= 1

    @contextlib.contextmanager
    def by_own_fit(self) -> Iterator[None]:
        """Marks a training by the student's own `fit` in a `with` statement."""
        self.trainer, self.is_own_fit = self._student, True
        try:
            yield
        finally:
            self.trainer, self.is_own_fit = None, False


class CheckLosses(keras.callbacks.Callback):
    """Callback that warns if a training leaves out the losses of the student.

    On JAX, Keras reads them for every training, so that nothing is found but
    `keras.distillation.Distiller`.

    Args:
        run: `TrainingRun` of the student.
    """

    def __init__(self, run: TrainingRun) -> None:
        super().__init__()
        self.run = run
        self.checked = False

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self.checked:
            return
        self.checked = True
        distiller = getattr(getattr(keras, "distillation", None), "Distiller", ())
        read = self.run.losses_read and not isinstance(self.run.trainer, distiller)
        if not read:
            keras_private.sync_variables(training_model(self.model))
        if not read and self.model.losses:
            self.run.losses_read = False  # the line above has read them
            warnings.warn(
                f"The losses of '{self.model.name}' are in no loss that is trained: "
                "its weight decay, and terms of its scheme. Add sum(model.losses) to "
                "the loss of the loop or of `compute_loss`.",
                stacklevel=2,
            )


class SchemeCallbacks(keras.callbacks.Callback):
    """Callback that runs those of a student in the training of any model.

    They have the student as their `model`.

    Args:
        student: the `Student`.
        own: callbacks of the student and its scheme.
        recalibrate: `Recalibration` of the student.
    """

    def __init__(
        self,
        student: "Student",
        own: Sequence[keras.callbacks.Callback],
        recalibrate: Recalibration,
    ) -> None:
        super().__init__()
        self.student = student
        self.callbacks = arranged(own, recalibrate, [])
        self._is_running = False

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(self.student)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._is_running:  # Keras does not tell of exceptions
            interrupt(self.callbacks)
        self._check(self.model)
        self.student.counted_steps = None
        self.student.training_run.trainer = self.model
        self._is_running = True
        self._forward("on_train_begin", logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        keras_private.sync_variables(self.model)
        self._forward("on_train_end", logs)
        self.student.training_run.trainer = None
        self._is_running = False
        if self.model is not self.student:
            self.model.train_function = None  # a next `fit` traces the student again
        with self._verbosity():
            warn_if_unmet(self.student)

    def _check(self, trainer):
        if self.student.training_run.is_own_fit:
            raise ValueError(
                "`student.fit` runs the callbacks of its scheme itself. Received: "
                "those of `tfcompress.callbacks` as well. Leave them out."
            )
        if "epochs" not in (self.params or {}):
            raise ValueError(
                "The callbacks of a student need the number of epochs, and that of "
                "steps per epoch if it is known. Received: none. Pass them as in "
                "keras.callbacks.CallbackList(..., epochs=10, steps=100)."
            )
        self.params.setdefault("steps", None)
        known = {id(variable) for variable in trainer.weights}
        if not all(id(variable) in known for variable in self.student.weights):
            raise ValueError(
                "The model that is trained is expected to contain the whole student "
                f"'{self.student.name}'. Received: '{trainer.name}', which does not. "
                "Compose the model first, then compress it, or train the student "
                "alone."
            )
        if getattr(trainer, "optimizer", None) is None:
            raise ValueError(
                "The model that is trained is expected to have its optimizer. "
                f"Received: '{trainer.name}' without one. Compile it with the "
                "optimizer of the loop."
            )
        if self.student.distillation is not None and trainer is not self.student:
            raise ValueError(
                "A distilled student is expected to train with its own loss. "
                f"Received: '{self.student.name}' in the training of '{trainer.name}'. "
                "Set `student.distillation = None`, or train the student by its `fit`."
            )

    def _verbosity(self):
        return verbosity((self.params or {}).get("verbose", "auto"))

    def _forward(self, hook, *args, **kwargs):
        with self._verbosity():
            for callback in self.callbacks:
                getattr(callback, hook)(*args, **kwargs)


def _forwarding(hook: str) -> Callable[..., None]:
    def call(self, *args, **kwargs):
        if "batch" not in hook:
            keras_private.sync_variables(self.model)
        self._forward(hook, *args, **kwargs)

    return call


for _hook in ("on_epoch", "on_train_batch", "on_test", "on_test_batch"):
    for _side in ("begin", "end"):
        setattr(SchemeCallbacks, f"{_hook}_{_side}", _forwarding(f"{_hook}_{_side}"))
