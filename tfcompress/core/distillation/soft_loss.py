"""Loss of distillation: the distance of a student's outputs from a teacher's."""

from typing import Any

import keras
from keras import ops

from tfcompress.graph.graph import Graph
from tfcompress.types import Tensor

# Smallest probability whose logarithm is taken: the smallest normal float32.
SMALLEST = 1.1754944e-38
CATEGORICAL, BINARY, VALUES = "categorical", "binary", "values"
_BINARY_LOSSES = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)


class SoftLoss(keras.losses.Loss):
    """Divergence of one output from the teacher's (Hinton et al. 2015, section 2).

    It is reduced, weighted and scaled for several replicas as Keras's losses are.

    Args:
        kind: str. "categorical": `T^2 * KL` over the last axis. "binary": the mean of
            `T^2 * KL` of two classes over the last axis. "values": the mean squared
            error over the last axis.
        activations: `(teacher's, student's)`, each "softmax", "sigmoid" or None for
            logits. Ignored for "values".
        temperature: float. Temperature T.
        reduction: reduction of `keras.losses.Loss`.
    """

    def __init__(
        self,
        kind: str,
        activations: tuple[str | None, str | None],
        temperature: float,
        reduction: str | None = "sum_over_batch_size",
    ) -> None:
        super().__init__(name="soft_loss", reduction=reduction)
        self.kind = kind
        self.activations = activations
        self.temperature = temperature

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns the loss of each sample.

        Args:
            y_true: float32 (samples, ..., classes). Outputs of the teacher.
            y_pred: float32 (samples, ..., classes). Outputs of the student.
        """
        if self.kind == VALUES:
            return _mean(ops.square(y_pred - y_true))
        teacher, student = (
            logits(outputs, activation) / self.temperature
            for outputs, activation in zip(
                (y_true, y_pred), self.activations, strict=True
            )
        )
        if self.kind == CATEGORICAL:
            log_p, log_q = ops.log_softmax(teacher), ops.log_softmax(student)
            divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        else:
            divergence = _mean(
                sum(
                    ops.sigmoid(p) * (ops.log_sigmoid(p) - ops.log_sigmoid(q))
                    for p, q in ((teacher, student), (-teacher, -student))
                )
            )
        return self.temperature**2 * divergence


def kind_of_output(activation: str | None, loss: Any) -> tuple[str, str | None]:
    """Returns the kind of an output's `SoftLoss`, and the student's activation.

    Args:
        activation: the student's, as `output_activations` returns it.
        loss: loss that the output is compiled with: `Loss`, function or str.
    """
    if activation is not None:
        return (CATEGORICAL if activation == "softmax" else BINARY), activation
    if not getattr(loss, "from_logits", False):
        return VALUES, None
    return (BINARY if isinstance(loss, _BINARY_LOSSES) else CATEGORICAL), None


def output_activations(model: keras.Model) -> list[str | None]:
    """Returns the last activation of each output, in flat order.

    Args:
        model: built Functional or Sequential model.

    Returns:
        List of "softmax" (over the last axis), "sigmoid", or None for any other.
    """
    graph = Graph(model)
    producers = {id(x): call for call in graph.calls for x in call.outputs}
    activations = []
    for output in graph.outputs:
        call = producers.get(id(output))
        while call is not None and _is_identity(call.operation):
            call = producers.get(id(call.inputs[0]))
        found = None if call is None else _activation(call.operation, output.shape)
        activations.append(found)
    return activations


def _is_identity(operation):
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.linear
    return isinstance(operation, keras.layers.Identity)


def _activation(operation, shape):
    # The layer `Softmax` and the operations of `keras.ops` have it as their name.
    name = type(operation).__name__.lower()
    if name not in ("softmax", "sigmoid"):
        function = getattr(operation, "activation", None)
        for known in (keras.activations.softmax, keras.activations.sigmoid):
            if function is known:
                return known.__name__
        return None
    axis = getattr(operation, "axis", -1)
    return name if axis in (-1, len(shape) - 1) else None


def logits(outputs: Tensor, activation: str | None) -> Tensor:
    """Returns the logits of probabilities, for a softmax apart from one addend.

    Args:
        outputs: float tensor. Outputs of a model.
        activation: see `output_activations`. With None the outputs are returned.
    """
    if activation is None:
        return outputs
    log_p = ops.log(ops.maximum(outputs, SMALLEST))
    if activation == "softmax":
        return log_p
    return log_p - ops.log(ops.maximum(1.0 - outputs, SMALLEST))


def _mean(values):
    return ops.mean(values, axis=-1) if len(values.shape) > 1 else values
