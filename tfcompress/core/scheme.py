"""Interface of all schemes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from tfcompress.arguments import check_number
from tfcompress.compat import keras_private
from tfcompress.core.budget import excess
from tfcompress.core.config import KeepFloat, QuantizeConfig, Treatment
from tfcompress.core.student import Student
from tfcompress.core.training.recalibration import Recalibration

if TYPE_CHECKING:
    from tfcompress.core.plan import Plan


@dataclasses.dataclass(frozen=True)
class Place:
    """Place of a layer in its model.

    Attributes:
        is_first: bool. Whether no layer that could be compressed comes before it.
        is_last: bool. Whether no layer that could be compressed comes after it.
        signed_input: bool. Whether its input may be negative.
    """

    is_first: bool
    is_last: bool
    signed_input: bool


class Scheme:
    """Base class of schemes, which choose treatments and act during `fit`.

    Subclasses define `config_for(layer, place)` and, to act during `fit`,
    `callbacks(student, recalibrate)`. Those with a budget define `measure(student)` and
    `unmet(student)`.

    Attributes:
        treatment: type. Class of the treatments that `config_for` returns.

    Args:
        overrides: dict of str to `KeepFloat` or a treatment. A key is a regular
            expression that matches a whole layer name ("outer/inner" in nested
            models). The first match takes the place of the scheme's choice.
        weight_decay: float, 0 to 1. L2 penalty `weight_decay / 2 * ||w||^2` on the
            kernel of each treated layer that has no regularizer of its own.

    Raises:
        TypeError: if `overrides` is no such dict.
        ValueError: if a key is no regular expression, or `weight_decay` is no number
            from 0 to 1.
    """

    treatment: type[Treatment] = QuantizeConfig

    def __init__(
        self, overrides: Mapping[str, Any] | None = None, weight_decay: float = 0.0
    ) -> None:
        overrides = {} if overrides is None else overrides
        is_by_name = isinstance(overrides, Mapping)
        if not is_by_name or not all(isinstance(key, str) for key in overrides):
            raise TypeError(
                "`overrides` is a dict from layer names or regular expressions to "
                f"treatments. Received: overrides={overrides!r}."
            )
        for pattern, config in overrides.items():
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
        check_number(
            "weight_decay", weight_decay, "a number from 0 to 1", lambda x: 0 <= x <= 1
        )
        self.overrides = dict(overrides)
        self.weight_decay = weight_decay

    def config_for(
        self, layer: keras.layers.Layer, place: Place
    ) -> Treatment | KeepFloat:
        """Returns the treatment of an eligible layer.

        Args:
            layer: convolution or dense layer of Keras.
            place: `Place` of the layer.
        """
        raise NotImplementedError

    def check(self, model: keras.Model, plan: "Plan") -> None:
        """Checks that the scheme's budget can be met for a model.

        Args:
            model: the user's model.
            plan: `Plan` of the model.

        Raises:
            ValueError: if it cannot.
        """

    def notes(self, model: keras.Model, plan: "Plan") -> dict[str, str]:
        """Returns `{layer name: text}` that the plan adds to treatments."""
        return {}

    def layers_before(
        self, model: keras.Model, plan: "Plan"
    ) -> dict[str, list[keras.layers.Layer]]:
        """Returns `{layer name: new layers}` that the student calls before a layer."""
        return {}

    def learns_all_ranges(self) -> bool:
        """Whether a student has a learned range of 8 bits for every stored tensor.

        The tensors are those that a file with int8 activations stores, see
        `tensor_ranges.TensorRanges`. Otherwise only inputs of compressed layers may
        have one.
        """
        return False

    def packs_all_kernels(self) -> bool:
        """Whether the kernels of layers that are left alone are rounded to 8 bits too.

        It holds for a scheme without quantizers of its own that `learns_all_ranges`.
        The student computes with the rounded kernels.
        """
        return False

    def rounds_norms(self) -> bool:
        """Whether scales and offsets of batch normalizations are rounded to bfloat16.

        A file then has fewer bytes after compression, see `graph.rounded_norms`.
        """
        return False

    def connect(self, student: Student) -> None:
        """Sets the references between layers of a new or loaded student."""

    def prepare(self, student: Student) -> None:
        """Sets the initial state of a new student."""

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        """Returns the callbacks that `student.fit` runs before the user's.

        Those that are `RunLast` run after the user's.

        Args:
            student: the `Student`.
            recalibrate: `Recalibration` of the student; its `batches` are training
                inputs.
        """
        return []

    def needs_callbacks(self, student: Student) -> bool:
        """Whether a training of a student is wrong without its callbacks.

        They are those of the scheme, and the recalibration of batch normalization.
        """
        return type(self).callbacks is not Scheme.callbacks or any(
            isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for layer in keras_private.flatten_layers(student)
        )

    def measure(self, student: Student) -> dict[str, float]:
        """Returns the numbers that `student.fit` adds to the logs of each epoch.

        Every scheme that compresses step by step has "phase", 0 until the compression
        is finished and 1 from then on. With a budget it also has "budget_ratio", the
        present cost divided by the budget, at most 1 where the budget is met.

        Args:
            student: the `Student`.
        """
        return {}

    def unmet(self, student: Student) -> str | None:
        """Returns a clause that says how a student misses the goal of its scheme.

        The goal is a budget or a sparsity. `fit` warns of it at its end, and so does
        `tfcompress.finalize`. None if the goal is met, or if only a long computation
        would tell.

        Args:
            student: the `Student`.
        """
        return None

    def check_finished(self, student: Student) -> None:
        """Checks that a student may be finalized.

        Args:
            student: the `Student`.

        Raises:
            ValueError: if its training missed the goal of the scheme, and no further
                training would help.
        """

    def get_config(self) -> dict[str, Any]:
        return {
            "overrides": {
                pattern: keras.saving.serialize_keras_object(config)
                for pattern, config in self.overrides.items()
            },
            "weight_decay": self.weight_decay,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Scheme":
        saved = config.get("overrides")
        if not isinstance(saved, Mapping):
            raise ValueError(
                f"A configuration of {cls.__name__} is expected to have `overrides`, a "
                f"dict. Received: {saved!r}."
            )
        overrides = {
            pattern: keras.saving.deserialize_keras_object(value)
            for pattern, value in saved.items()
        }
        return cls(**{**config, "overrides": overrides})


class SearchingScheme(Scheme):
    """Base class of schemes that search first, and then fine-tune the result.

    Args:
        search_fraction: float in (0, 1]. Share of the first `fit` that searches.
        overrides, weight_decay: see `Scheme`.
        may_skip: bool. Whether `search_fraction` may be 0: the result is then frozen
            before the first step.

    Raises:
        ValueError: if `search_fraction` is out of range.
    """

    def __init__(
        self,
        search_fraction: float,
        overrides: Mapping[str, Any] | None = None,
        weight_decay: float = 0.0,
        may_skip: bool = False,
    ) -> None:
        super().__init__(overrides, weight_decay)
        check_number(
            "search_fraction",
            search_fraction,
            "the share of the first fit that searches, in "
            + ("[0, 1]" if may_skip else "(0, 1]"),
            lambda x: (x >= 0 if may_skip else x > 0) and x <= 1,
        )
        self.search_fraction = search_fraction

    def cost_name(self) -> str:
        """Returns the name of the budget's unit, a key of `measure`."""
        raise NotImplementedError

    def unmet(self, student: Student) -> str | None:
        measured = self.measure(student)
        reasons = [] if measured["phase"] else ["its search has not ended"]
        ratio, name = measured.get("budget_ratio"), self.cost_name()
        if ratio:
            reasons.append(excess(measured[name], measured[name] / ratio, name) or "")
        return "; ".join(filter(None, reasons)) or None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "search_fraction": self.search_fraction}
