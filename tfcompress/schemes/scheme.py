"""What every scheme can do, and what `compress` asks of it."""

import re

import keras

from tfcompress.schemes.config import KeepFloat, QuantizeConfig


class Scheme:
    """Decides every layer's treatment and what happens while it trains; base class.

    Subclasses give `config_for(layer, is_first, is_last)` and, if anything has
    to happen during `fit`, `callbacks(student)`.

    Args:
        overrides: `{pattern: KeepFloat() or QuantizeConfig(...)}`. A pattern is a
            regular expression that matches a whole layer name ("outer/inner" in
            nested models); the first that matches wins over the scheme's choice.
        weight_decay: L2 penalty `weight_decay / 2 * ||w||^2` on the kernel of each
            treated layer that has no regularizer of its own.
    """

    def __init__(self, overrides=None, weight_decay=0.0):
        for pattern, config in (overrides or {}).items():
            if not isinstance(config, (KeepFloat, QuantizeConfig)):
                raise TypeError(
                    "An override is tfc.KeepFloat() or tfc.QuantizeConfig(...). "
                    f"Received: {config!r} for {pattern!r}."
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    "The key of an override is a layer name or a regular "
                    f"expression. Received: {pattern!r} ({error})."
                ) from None
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(
                "`weight_decay` is a finite number >= 0. Received: "
                f"weight_decay={weight_decay}."
            )
        self.overrides = dict(overrides or {})
        self.weight_decay = weight_decay

    def config_for(self, layer, is_first, is_last):
        """`QuantizeConfig` or `KeepFloat` for an eligible layer.

        Args:
            layer: a Keras convolution or dense layer.
            is_first: whether it sees the model's input through no other such layer.
            is_last: whether no other such layer comes after it.
        """
        raise NotImplementedError

    def prepare(self, student):
        """Sets the starting state of a new student."""

    def callbacks(self, student):
        """Keras callbacks that `student.fit` runs before the user's."""
        return []

    def get_config(self):
        return {
            "overrides": {
                pattern: keras.saving.serialize_keras_object(config)
                for pattern, config in self.overrides.items()
            },
            "weight_decay": self.weight_decay,
        }

    @classmethod
    def from_config(cls, config):
        overrides = {
            pattern: keras.saving.deserialize_keras_object(value)
            for pattern, value in config["overrides"].items()
        }
        return cls(**{**config, "overrides": overrides})
