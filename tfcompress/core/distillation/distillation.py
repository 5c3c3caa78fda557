"""Distillation: training on a teacher's outputs as well as on the labels."""

import contextlib
import dataclasses
import math
from typing import Any

import keras
from keras import ops

from tfcompress.arguments import check_number
from tfcompress.compat import keras_private
from tfcompress.core.checks import check_call, check_finite
from tfcompress.core.distillation.soft_loss import (
    SoftLoss,
    kind_of_output,
    output_activations,
)
from tfcompress.graph.graph import check_has_graph
from tfcompress.graph.parts.subclassed_model import with_graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.types import Tensor


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class Distillation:
    """Settings of distillation (Hinton et al. 2015, arXiv 1503.02531, section 2).

    The loss of an output of class scores is

        (1 - w) * loss(y, student)
            + w * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    with the compiled loss, temperature T and weight w. The logits of outputs that end
    in a softmax are the logarithms of their probabilities. Sigmoids, and logits of a
    binary crossentropy, have the divergence of two classes, averaged over the last
    axis. Outputs that are no class scores have `w * mean((teacher - student)^2)`.
    Outputs are class scores if they end in a softmax or sigmoid, or if their compiled
    loss has `from_logits=True`.

    Several outputs share T and w. An output without a compiled loss is not distilled,
    unless none has one. Both terms of an output have its loss weight, its reduction and
    the sample weights. Regularization and the losses of the scheme are added in full.
    Validation has the compiled loss alone.

    Args:
        temperature: float above 0. Temperature T of both softmaxes.
        weight: float in (0, 1]. Weight w of the teacher.
        teacher: built `keras.Model`, as `tfcompress.compress` takes it, with inputs and
            outputs of the shapes of the compressed model; or None for that model
            itself. It is never saved.

    Raises:
        TypeError: if the teacher is no Keras 3 model.
        ValueError: if `temperature` or `weight` is out of range.
    """

    temperature: float = 4.0
    weight: float = 0.9
    teacher: keras.Model | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_number(
            "temperature",
            self.temperature,
            "the divisor of logits, a finite number > 0",
            lambda x: 0 < x < math.inf,
        )
        check_number(
            "weight",
            self.weight,
            "the teacher's share of the loss, in (0, 1]",
            lambda x: 0 < x <= 1,
        )
        if not (self.teacher is None or isinstance(self.teacher, keras.Model)):
            raise TypeError(
                "A teacher is a Keras 3 model, or None for the compressed model. "
                f"Received: an object of type {type(self.teacher).__name__}."
            )

    @staticmethod
    def of(distill: Any) -> "Distillation | None":
        """Returns the settings that the argument `distill` of `compress` stands for.

        Raises:
            TypeError: if it is neither a bool, None nor a `Distillation`.
        """
        if distill is None or isinstance(distill, Distillation):
            return distill
        if isinstance(distill, bool):
            return Distillation() if distill else None
        raise TypeError(
            "`distill` is True, None or tfc.Distillation(...). Received: "
            f"distill={distill!r}. For another teacher than the model, pass "
            "tfc.Distillation(teacher=model)."
        )

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "weight": self.weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Distillation":
        return cls(**config)


class DistilledModel(keras.Model):
    """Functional model that may train on the outputs of a teacher.

    The teacher is a copy. It is in no list of layers or variables, and in no file. Only
    training steps call it; their `distillation_loss` is in the logs.

    Attributes:
        distillation: `Distillation`, or None to train on the labels alone.
    """

    distillation: Distillation | None = None
    _teaching: Any = None  # `_Teaching`
    _evaluating = False

    def set_teacher(self, teacher: keras.Model) -> None:
        """Sets the teacher, as it is now; later changes of it have no effect.

        Args:
            teacher: see `Distillation`. It is copied, and left untouched.

        Raises:
            TypeError, ValueError: if there is no `distillation`, or the teacher does
                not fit the model.
        """
        if self.distillation is None:
            raise ValueError(
                "A model with a distillation is expected, as `tfcompress.compress(..., "
                f"distill=True)` makes it. Received: '{self.name}' without one. Set "
                "`student.distillation = tfc.Distillation()` first."
            )
        teacher = with_graph(teacher)
        check_teacher(self, teacher)
        strategy = getattr(self, "distribute_strategy", None)  # TensorFlow's
        with strategy.scope() if strategy else contextlib.nullcontext():
            self._teaching = _Teaching(self, teacher, self.distillation)
        self.train_function = None  # it calls the teacher before

    def check_has_teacher(self) -> None:
        """Raises ValueError if the model is to be distilled and has no teacher."""
        if self.distillation is not None and self._teaching is None:
            raise ValueError(
                "A distilled model is expected to have its teacher, which files do not "
                f"hold. Received: '{self.name}' without one. Call "
                "`student.set_teacher(model)` with the float model before training, or "
                "set `student.distillation = None` to train without it."
            )

    def teaching_callbacks(self) -> list[keras.callbacks.Callback]:
        """Returns the callbacks that `fit` needs for the teacher."""
        self.check_has_teacher()
        return [] if self.distillation is None else [_CheckTaught(self._teaching)]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        metrics = super().metrics
        if self._teaching is None or self.distillation is None or self._evaluating:
            return metrics
        return [*metrics, self._teaching.tracker]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `keras.Model.evaluate`, on the compiled loss alone."""
        self._evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluating = False

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the loss of a batch; see `Distillation` for that of training."""
        total = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training or self.distillation is None:
            return total
        self.check_has_teacher()
        weight = self._teaching.settings.weight
        soft = self._teaching.loss(self, x, y_pred, sample_weight)
        total = (1.0 - weight) * total + weight * soft
        # The other losses in `total` are not scaled.
        for loss in self.losses:
            loss = ops.sum(ops.cast(loss, total.dtype))
            total += weight / _replicas(self) * loss
        return total


class _Teaching:
    """Teacher of a model, in an object that Keras neither tracks nor saves.

    Attributes:
        settings: `Distillation`. Settings that hold while it teaches.
        tracker: `_Distance` from the teacher.
    """

    def __init__(
        self, model: DistilledModel, teacher: keras.Model, settings: Distillation
    ) -> None:
        self.settings = settings
        self.teacher, pairs = rebuild(teacher, clone_layer)
        for old, new in pairs:
            copy_weights(old, new)
        self.teacher.trainable = False
        self.activations = list(
            zip(output_activations(teacher), output_activations(model), strict=True)
        )
        self.tracker = _Distance(name="distillation_loss")

    def loss(
        self, model: DistilledModel, x: Any, y_pred: Any, sample_weight: Any
    ) -> Tensor:
        """Returns the distance from the teacher, a scalar, and tracks it."""
        taught = self.teacher(x, training=False)
        taught = [ops.stop_gradient(y) for y in keras.tree.flatten(taught)]
        outputs = keras.tree.flatten(y_pred)
        total = unscaled = 0.0
        any_loss = "none" if model.loss is None else model.loss
        for true, pred, activations, loss, loss_weight, weights in zip(
            taught,
            outputs,
            self.activations,
            _per_output(model, any_loss, y_pred),
            _per_output(model, keras_private.loss_weights(model), y_pred),
            _per_output(model, sample_weight, y_pred),
            strict=True,
        ):
            if loss is None:
                continue
            kind, activation = kind_of_output(activations[1], loss)
            reduction = getattr(loss, "reduction", "sum_over_batch_size")
            soft = SoftLoss(
                kind,
                (activations[0], activation),
                self.settings.temperature,
                reduction,
            )
            value = soft(true, pred, weights)
            if loss_weight is not None:
                value = loss_weight * value
            total += value
            # Keras divides means, and no sums, by the number of replicas.
            is_mean = reduction not in ("sum", "none", None)
            unscaled += value * (_replicas(model) if is_mean else 1)
        self.tracker.track(unscaled, ops.shape(outputs[0])[0])
        return total


class _Distance(keras.metrics.Mean):
    """Metric that averages the distance from the teacher over samples.

    A `train_step` of the user may pass labels and outputs to all `metrics` of a model,
    as in Keras's guides. `update_state` therefore ignores them.
    """

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def track(self, distance: Tensor, samples: Tensor) -> None:
        """Adds the mean distance of a batch, and its number of samples."""
        super().update_state(distance, sample_weight=samples)


class _CheckTaught(keras.callbacks.Callback):
    """Callback that checks that the first step has called the teacher."""

    def __init__(self, teaching: _Teaching) -> None:
        super().__init__()
        self.tracker = teaching.tracker
        self.checked = False

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self.checked:
            return
        self.checked = True
        tracked = any(metric is self.tracker for metric in self.model.metrics)
        if tracked and not ops.convert_to_numpy(self.tracker.count):
            raise ValueError(
                "A distilled model is expected to train with the loss of "
                "`super().compute_loss`, which has the teacher's part. Received: "
                f"'{self.model.name}', whose class has a `train_step` or "
                "`compute_loss` without it. Call it there, or compress without "
                "`distill`."
            )


def check_teacher(model: keras.Model, teacher: Any) -> None:
    """Checks that a teacher can be copied and fits a model.

    Args:
        model: built Functional or Sequential model.
        teacher: see `Distillation`.

    Raises:
        TypeError: if the teacher is no Keras 3 model.
        ValueError: if it has no graph, a `call` of its own, weights that are not
            finite, or inputs or outputs of other shapes, or if it is a student.
    """
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            "A teacher is a Keras 3 model. Received: an object of type "
            f"{type(teacher).__name__}."
        )
    if isinstance(teacher, DistilledModel) and hasattr(teacher, "scheme"):
        raise ValueError(
            "A teacher is expected to be a float or a finalized model. Received: the "
            f"student '{teacher.name}'. Pass `tfcompress.finalize` of it."
        )
    check_has_graph(teacher)
    check_call(teacher)
    check_finite(teacher, "A teacher needs healthy weights.")
    for side in ("input", "output"):
        expected, received = _shapes(model, side), _shapes(teacher, side)
        if not _fits(expected, received):
            raise ValueError(
                f"A teacher's {side}s must have the shapes of those of '{model.name}': "
                f"{expected}. Received: {received} of '{teacher.name}'. Wrap the "
                "teacher in a `keras.Model` that converts them, or take another one."
            )


def _shapes(model, side):
    """`{name or position: shape}`; names only where the structure is a dict."""
    is_functional = isinstance(model, keras.Function)
    tensors = getattr(model, side if is_functional else f"{side}s")
    if isinstance(tensors, dict):
        return {name: tuple(x.shape) for name, x in tensors.items()}
    return dict(enumerate(tuple(x.shape) for x in keras.tree.flatten(tensors)))


def _fits(expected, received):
    return expected.keys() == received.keys() and all(
        len(shape) == len(received[name])
        and all(
            a == b or None in (a, b) for a, b in zip(shape, received[name], strict=True)
        )
        for name, shape in expected.items()
    )


def _per_output(model, argument, y_pred):
    """An argument of `compile` or `fit` for each output, in flat order."""
    count = len(keras.tree.flatten(y_pred))
    if isinstance(argument, dict):
        is_dict = isinstance(y_pred, dict)
        names = keras.tree.flatten({x: x for x in y_pred}) if is_dict else None
        return [argument.get(name) for name in names or model.output_names]
    if isinstance(argument, (list, tuple)):
        return list(argument)
    return [argument] * count


def _replicas(model):
    """Number of replicas by which Keras divides means; one but with TensorFlow."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.num_replicas_in_sync if strategy else 1
