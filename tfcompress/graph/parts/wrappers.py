"""Layers of Keras that wrap another one."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from tfcompress.graph.parts.examples import NoPartsError
from tfcompress.layers.cloning import clone_layer, config_of
from tfcompress.layers.kernel import value_of
from tfcompress.layers.registry import forms_of
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps
from tfcompress.types import Tensor

KINDS = (layers.SpectralNormalization,)
# Iterations for the spectral norm of a kernel; each step starts again.
_ITERATIONS = 8


def call_of(layer: keras.layers.Layer) -> Callable[..., Any]:
    """Returns the `call` of a layer, in the form in which it is traced.

    `TimeDistributed` calls its layer once per step. Here it is called once, on all
    steps as samples. `Bidirectional` may run both directions in one operation, by the
    weights of its layers. Here it calls them.
    """
    if type(layer) is layers.Bidirectional:
        return functools.partial(_call_both, layer)
    if type(layer) is not layers.TimeDistributed:
        return layer.call
    inner = layer.layer

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if isinstance(inner, layers.Dense):
            return inner(inputs)
        if mask is not None and "mask" in inspect.signature(inner.call).parameters:
            raise NoPartsError("passes the masks of its steps on")
        return on_all_steps(inner, inputs)

    return call


def on_all_steps(layer: Callable[[Any], Any], inputs: Tensor) -> Tensor:
    """Returns the outputs of a layer that is called once, on all steps as samples.

    Args:
        layer: layer, or another function, from (samples, ...) to (samples, ...).
        inputs: tensor of shape (batch, steps, ...).
    """
    outputs = layer(MergeSteps(dtype=inputs.dtype)(inputs))
    return SplitSteps(dtype=outputs.dtype)(outputs, inputs)


def _call_both(layer, *args, **kwargs):
    """Calls a `Bidirectional`, of which no layer asks for a fused operation."""
    both = layer.forward_layer, layer.backward_layer
    asked = {part: vars(part).get("use_cudnn") for part in both}
    for part in asked:
        part.use_cudnn = False
    try:
        return layer.call(*args, **kwargs)
    finally:
        for part, value in asked.items():
            if value is None:
                del part.use_cudnn
            else:
                part.use_cudnn = value


def parts(layer: layers.SpectralNormalization) -> list[layers.Layer]:
    """Returns the layer that `SpectralNormalization` wraps, with a constraint.

    Raises:
        NoPartsError: if it has a constraint of its own, or no form to compress it.
    """
    inner = layer.layer
    forms = forms_of(inner)
    if forms is None or type(inner) is not forms.plain:
        raise NoPartsError(f"normalizes a layer of type {type(inner).__name__}")
    config = config_of(inner)
    (key,) = [k for k in config if k in ("kernel_constraint", "depthwise_constraint")]
    if config[key] is not None:
        raise NoPartsError(f"has a layer with a `{key}`")
    trainable = layer.trainable and inner.trainable
    changes = {"name": layer.name, key: UnitSpectralNorm(), "trainable": trainable}
    return [clone_layer(inner, **changes)]


def copy_weights(old: layers.SpectralNormalization, new: Sequence[Any]) -> None:
    """Gives the built `parts` the weights of the layer."""
    (part,) = new
    for variable, value in zip(part.weights, old.layer.weights, strict=True):
        variable.assign(value_of(value))


@keras.saving.register_keras_serializable(package="tfcompress")
class UnitSpectralNorm(keras.constraints.Constraint):
    """Constraint that divides a kernel by its largest singular value.

    Spectral Normalization for GAN (https://arxiv.org/abs/1802.05957), with the power
    method. The kernel is a matrix with a column per index of its last axis.
    """

    def __call__(self, w: Tensor) -> Tensor:
        """Returns a kernel of spectral norm 1; one of zeros stays as it is."""
        largest = ops.max(ops.abs(w))
        matrix = ops.reshape(w, (-1, w.shape[-1])) / ops.where(largest > 0, largest, 1)
        # The longest row is never orthogonal to all right singular vectors.
        lengths = ops.sum(ops.square(matrix), axis=1)
        vector = ops.take(matrix, ops.argmax(lengths), axis=0)
        for _ in range(_ITERATIONS):
            vector = _unit(ops.matmul(_unit(ops.matmul(matrix, vector)), matrix))
        norm = ops.sqrt(ops.sum(ops.square(ops.matmul(matrix, vector))))
        return ops.reshape(matrix / ops.where(norm > 0, norm, 1), w.shape)


def _unit(vector):
    length = ops.sqrt(ops.sum(ops.square(vector)))
    return vector / ops.where(length > 0, length, 1)
