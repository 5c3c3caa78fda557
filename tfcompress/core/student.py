"""Model that is trained towards its compressed form."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfcompress.compat import keras_private
from tfcompress.core.callbacks import TrainingRun, scheme_callbacks
from tfcompress.core.distillation.distillation import Distillation, DistilledModel
from tfcompress.core.training.data import check_has_samples, take_inputs
from tfcompress.core.training.progress import (
    ProgressCallback,
    restored_if_interrupted,
)
from tfcompress.core.training.recalibration import random_states
from tfcompress.core.training.user_callbacks import arranged, warn_if_unmet
from tfcompress.progress_bar import verbosity

if TYPE_CHECKING:
    from tfcompress.core.scheme import Scheme
    from tfcompress.core.user_class import UserClass

# Key of the states of random numbers, such as those of dropout, in a saved state.
_SEEDS = "seeds"


@keras.saving.register_keras_serializable(package="tfcompress")
class Student(DistilledModel):
    """Functional model whose `fit` runs the callbacks of its scheme.

    `tfcompress.compress` makes a student. It is used, saved and loaded like any Keras
    model. The state of a search is saved with the weights, so that a training with
    `keras.callbacks.BackupAndRestore` ends in the same way if it is interrupted.

    Attributes:
        scheme: `Scheme` that it was compressed with, or None.
        search: `ProgressCallback` in `fit` whose state is saved, or None.
        restored: dict of str to array. State of the search in the weights that were
            loaded; empty if there was none.
        counted_steps: int or None. Batches of an epoch of the present data, if all of
            them were read.
        user_class: `UserClass` of the model that was compressed, or None. The student
            is an instance of that class too.
        training_run: `TrainingRun`. The present training, if any.
    """

    scheme: "Scheme | None" = None
    search: "ProgressCallback | None" = None
    restored: dict[str, np.ndarray] = {}
    counted_steps: int | None = None
    user_class: "UserClass | None" = None
    training_run: TrainingRun

    def set_scheme(self, scheme: "Scheme") -> None:
        """Sets the scheme and connects the layers with it."""
        self.scheme = scheme
        scheme.connect(self)
        self.training_run = TrainingRun(self)

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        """Computes the graph, see `keras.Model`.

        Raises:
            ValueError: in training, if the student is a clone without a scheme, or
                neither `fit` nor `tfcompress.callbacks` run.
        """
        if training:
            self._check_scheme()
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the compiled training step, see `keras.Model`."""
        is_new = force or self.train_function is None
        made = super().make_train_function(force)
        # The step of a user's class may give losses and metrics other outputs.
        has_own_step = self.user_class is not None
        if is_new and keras.backend.backend() == "tensorflow" and not has_own_step:
            keras_private.trace_once(self)
        return made

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `keras.Model.train_on_batch`, between calls of the scheme's callbacks.

        Raises:
            ValueError: if these do not run, see `tfcompress.callbacks`.
        """
        self._check_scheme()
        self.check_has_teacher()
        self.training_run.check()  # the compiled step does not
        return super().train_on_batch(*args, **kwargs)

    def _check_scheme(self) -> "Scheme":
        if self.scheme is None:
            raise ValueError(
                "A student is expected to have its scheme, as `tfcompress.compress` or "
                f"`keras.models.load_model` give it. Received: '{self.name}' without "
                "one. Compress the model again in place of cloning a student."
            )
        return self.scheme

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> keras.callbacks.History:
        """Runs `keras.Model.fit`, with the scheme's callbacks before the user's.

        The logs of each epoch have the measurements of the scheme, see its `measure`.
        Callbacks that compare epochs (`EarlyStopping`, `ReduceLROnPlateau`, and those
        with `save_best_only`) see only epochs after the end of the compression.

        Each call is a whole training: schedules run from its first epoch to its last.
        Some samples are read before the first epoch, see `take_inputs`.

        Args: those of `keras.Model.fit`. With data of unknown length
            `steps_per_epoch` lets schedules move within the first epoch.

        Returns:
            The history of `keras.Model.fit`.

        Raises:
            ValueError: if the student has no scheme because it is a clone; if it has a
                distillation and no teacher because it was loaded; or if there are no
                samples.

        Warns:
            UserWarning: if the student does not meet the goal of its scheme in the
                end, such as its budget.
        """
        scheme = self._check_scheme()
        self.check_has_teacher()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        with verbosity(verbose):
            batches, x, self.counted_steps = take_inputs(
                x,
                batch_size,
                0.0 if validation_data is not None else validation_split,
                model=self,
                steps_per_epoch=steps_per_epoch,
                shuffle=shuffle,
            )
            check_has_samples("x", x, batches)
            if validation_data is not None:
                check_has_samples("validation_data", validation_data)
            own, recalibrate = scheme_callbacks(self, scheme, batches)
            user = keras.tree.flatten(callbacks or [])
            with self.training_run.by_own_fit(), restored_if_interrupted(own):
                history = super().fit(
                    x,
                    y,
                    batch_size=batch_size,
                    epochs=epochs,
                    verbose=verbose,
                    callbacks=arranged(own, recalibrate, user),
                    validation_split=validation_split,
                    validation_data=validation_data,
                    shuffle=shuffle,
                    class_weight=class_weight,
                    sample_weight=sample_weight,
                    initial_epoch=initial_epoch,
                    steps_per_epoch=steps_per_epoch,
                    validation_steps=validation_steps,
                    validation_batch_size=validation_batch_size,
                    validation_freq=validation_freq,
                )
            warn_if_unmet(self)
            return history

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)  # those of the user's class
        for name, value in self._training_state().items():
            store[name] = value

    def _training_state(self):
        """State of the present training, which files of Keras leave out."""
        run = getattr(self, "training_run", None)
        if run is None or run.trainer is None:
            return {}
        state = self.search.training_state() if self.search else {}
        seeds = [keras.ops.convert_to_numpy(seed) for seed in random_states(self)]
        return {**state, _SEEDS: np.array(seeds)} if seeds else state

    def load_own_variables(self, store: Any) -> None:
        names = store.keys()  # Keras's stores have no other method of a mapping
        values = {name: np.array(store[name]) for name in names}
        own = {name: value for name, value in values.items() if name.isdigit()}
        super().load_own_variables(own)
        self.restored = {name: values[name] for name in names if name not in own}
        seeds = self.restored.pop(_SEEDS, np.zeros((0, 2)))
        for seed, value in zip(random_states(self), seeds, strict=False):
            seed.assign(value)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config["scheme"] = keras.saving.serialize_keras_object(self.scheme)
        if self.distillation is not None:
            settings = keras.saving.serialize_keras_object(self.distillation)
            config["distillation"] = settings
        if self.user_class is not None:
            config["user_class"] = self.user_class.serialize()
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Student":
        if "layers" not in config:  # arguments of the constructor of a user's class
            return super().from_config(config, custom_objects)
        config = dict(config)
        distillation = config.pop("distillation", None)
        scheme, user_class = config.pop("scheme", ""), config.pop("user_class", None)
        if user_class is None:
            student = super().from_config(config, custom_objects)
        else:
            from tfcompress.core.user_class import load_user_class  # it imports this

            plain = keras.Model.from_config(config, custom_objects)
            student = load_user_class(user_class, custom_objects).make_student(
                plain.input, plain.output, plain.name
            )
        if distillation is not None:
            settings = _restored("distillation", distillation, custom_objects)
            student.distillation = settings
        if scheme is not None:
            student.set_scheme(_restored("scheme", scheme, custom_objects))
        return student


def _restored(name, config, custom_objects):
    """Returns the scheme or the distillation of a student's configuration."""
    from tfcompress.core.scheme import Scheme  # it imports this

    kind = {"scheme": Scheme, "distillation": Distillation}[name]
    cause = None
    try:
        value = keras.saving.deserialize_keras_object(config, custom_objects)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        value, cause = config, error
    if not isinstance(value, kind):
        reason = f" ({cause})" if cause else ""
        raise ValueError(
            f"A student's configuration is expected to have its `{name}`, a "
            f"{kind.__name__} as `get_config` wrote it. Received: {config!r:.200}"
            f"{reason}. The file is damaged, or a class is missing: import its module, "
            "or pass `custom_objects`."
        ) from cause
    return value
