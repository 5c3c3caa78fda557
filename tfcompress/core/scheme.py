"""What every scheme can do, and what `compress` asks of it."""

import dataclasses
import re

import keras

from tfcompress.core.config import KeepFloat, QuantizeConfig


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer stands in its model.

    Attributes:
        is_first: whether it sees the model's input through no other layer that
            could be compressed.
        is_last: whether no other such layer comes after it.
        signed_input: whether its input may be negative.
    """

    is_first: bool
    is_last: bool
    signed_input: bool


class Scheme:
    """Decides every layer's treatment and what happens while it trains; base class.

    Subclasses give `config_for(layer, place)` and, if anything has to happen during
    `fit`, `callbacks(student, recalibrate)`.

    Attributes:
        treatment: class of what `config_for` gives a layer that is compressed:
            `QuantizeConfig`, or another with the same methods.

    Args:
        overrides: `{pattern: KeepFloat() or QuantizeConfig(...)}`. A pattern is a
            regular expression that matches a whole layer name ("outer/inner" in
            nested models); the first that matches wins over the scheme's choice.
        weight_decay: L2 penalty `weight_decay / 2 * ||w||^2` on the kernel of each
            treated layer that has no regularizer of its own.
    """

    treatment = QuantizeConfig

    def __init__(self, overrides=None, weight_decay=0.0):
        for pattern, config in (overrides or {}).items():
            if not isinstance(config, (KeepFloat, self.treatment)):
                raise TypeError(
                    "An override is tfc.KeepFloat() or "
                    f"tfc.{self.treatment.__name__}(...). "
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

    def config_for(self, layer, place):
        """A `treatment` or `KeepFloat` for an eligible layer.

        Args:
            layer: a Keras convolution or dense layer.
            place: its `Place`.
        """
        raise NotImplementedError

    def check(self, model, plan):
        """Raises ValueError if the scheme cannot keep its promise for a model.

        Args:
            model: the user's model.
            plan: its `Plan`.
        """

    def notes(self, model, plan):
        """`{layer name: text}` that the plan adds to the layers' treatment."""
        return {}

    def layers_in_front(self, model, plan):
        """`{layer name: [new layers]}` that the student calls in front of a layer."""
        return {}

    def connect(self, student):
        """Ties layers of a new or loaded student together that know of each other."""

    def prepare(self, student):
        """Sets the starting state of a new student."""

    def callbacks(self, student, recalibrate):
        """Keras callbacks that `student.fit` runs before the user's.

        Args:
            student: the `Student`.
            recalibrate: its `Recalibration`, with `batches` of training inputs.
        """
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


class SearchingScheme(Scheme):
    """A scheme that first searches, then fine-tunes what was found; base class.

    Args:
        search_fraction: share of the first `fit` that searches, in (0, 1].
        overrides, weight_decay: see `Scheme`.
    """

    def __init__(self, search_fraction, overrides=None, weight_decay=0.0):
        super().__init__(overrides, weight_decay)
        if not 0 < search_fraction <= 1:
            raise ValueError(
                "`search_fraction` is the share of the first fit that searches, in "
                f"(0, 1]. Received: search_fraction={search_fraction}."
            )
        self.search_fraction = search_fraction

    def get_config(self):
        return {**super().get_config(), "search_fraction": self.search_fraction}
