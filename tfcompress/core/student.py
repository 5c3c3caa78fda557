"""The model that is trained towards its compressed form."""

import keras
import numpy as np

from tfcompress.core.training.data import take_inputs
from tfcompress.core.training.recalibration import RecalibrateBatchNorm, Recalibration


@keras.saving.register_keras_serializable(package="tfcompress")
class Student(keras.Model):
    """A Functional model whose `fit` also does what its scheme needs.

    Made by `tfcompress.compress`; used, saved and loaded like any Keras model. With its
    weights it saves where a search stands, so that `keras.callbacks.BackupAndRestore`
    brings a training that was killed to the end that it would have come to.

    Attributes:
        scheme: what it is trained towards.
        search: the `Search` that goes on in `fit`, or None.
        restored: the `state()` of the search that its weights were saved in, a dict of
            arrays, empty if there was none.
    """

    scheme = None
    search = None
    restored = {}

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        **kwargs,
    ):
        """`keras.Model.fit`, with the scheme's callbacks before the user's.

        Each call is one whole training: schedules run from its first epoch to
        its last.

        Raises:
            ValueError: if the student has no scheme, being a clone of another.
        """
        if self.scheme is None:
            raise ValueError(
                "A student is expected to have its scheme, as `tfcompress.compress` or "
                f"`keras.models.load_model` give it. Received: '{self.name}' without "
                "one. Compress the model again in place of cloning a student."
            )
        batches, x = take_inputs(x, batch_size, validation_split)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        recalibrate = Recalibration(self, batches)
        own = self.scheme.callbacks(self, recalibrate)
        own = [*own, RecalibrateBatchNorm(recalibrate)]
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=own + keras.tree.flatten(callbacks or []),
            validation_split=validation_split,
            **kwargs,
        )

    def save_own_variables(self, store):
        for name, value in (self.search.state() if self.search else {}).items():
            store[name] = value

    def load_own_variables(self, store):
        names = store.keys()  # a store of Keras is no mapping in any other way
        self.restored = {name: np.array(store[name]) for name in names}

    def get_config(self):
        config = super().get_config()
        config["scheme"] = keras.saving.serialize_keras_object(self.scheme)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        scheme = config.pop("scheme")
        student = super().from_config(config, custom_objects)
        student.scheme = keras.saving.deserialize_keras_object(scheme, custom_objects)
        if student.scheme is not None:
            student.scheme.connect(student)
        return student
