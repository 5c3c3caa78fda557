"""Errors of float32 arithmetic in a model, from the lengths and terms of its sums.

A sum of n float32 terms of magnitudes |t| has an error of about

    eps * sqrt(n) * sum |t|,

whatever its order, where the errors of its additions have random signs. The bound for
any signs has n in place of sqrt(n), and would hide wrong weights.
Cancellation makes it large relative to the sum. A model is therefore run a second time
with errors of that size added to the output of each layer.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat.keras_private import run_through_graph
from tfcompress.graph.graph import is_model
from tfcompress.layers.kernel import by_channel, channel_axis, value_of
from tfcompress.layers.registry import forms_of
from tfcompress.types import Tensor

EPS = 2.0**-23
# Roundings of an operation without a kernel.
_ROUNDINGS = 4


def run_with_errors(model: keras.Model, inputs: Any, exact: Any) -> None:
    """Runs a model with errors of float32 arithmetic added to its layers' outputs.

    Args:
        model: Functional model.
        inputs: arrays in the structure of its inputs.
        exact: class of layers whose outputs get no errors.
    """
    signs = np.random.default_rng(0)

    def with_errors(operation: Any) -> Callable:
        if isinstance(operation, exact):
            return lambda *args, **_: operation(*args)
        if isinstance(operation, keras.Sequential):
            return lambda x, **_: _in_sequence(map(with_errors, operation.layers), x)
        if is_model(operation):
            return lambda x, **_: run_through_graph(operation, x, with_errors)

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = operation(*args, **kwargs)
            return keras.tree.map_structure(
                lambda y: _moved(y, _error(operation, args, y), signs), outputs
            )

        return call

    run_through_graph(model, inputs, with_errors)


def _in_sequence(functions, x):
    for function in functions:
        x = function(x)
    return x


def _moved(y, error, signs):
    if "float" not in keras.backend.standardize_dtype(y.dtype):
        return y
    sign = signs.choice((-1.0, 1.0), tuple(y.shape))
    return ops.cast(y + ops.convert_to_tensor(sign * error, y.dtype), y.dtype)


def _error(operation: Any, args: Any, y: Tensor) -> np.ndarray:
    """Error of an operation's output, broadcastable to it."""
    forms = forms_of(operation) if hasattr(operation, "weights") else None
    if forms is None or not forms.is_linear or forms.own is not None:
        return np.asarray(_ROUNDINGS * EPS * _largest(y))
    kernel = np.abs(ops.convert_to_numpy(value_of(operation.kernel)))
    columns = by_channel(kernel, forms.channel_axes)
    length, channels = columns.shape
    # Sums of the magnitudes of all terms, with the largest input for each.
    terms = columns.sum(axis=0) * _largest(args[0])
    if operation.use_bias:
        terms = terms + np.abs(ops.convert_to_numpy(operation.bias))
    shape = [1] * len(y.shape)
    shape[channel_axis(operation)] = channels
    return EPS * math.sqrt(length) * terms.reshape(shape)


def _largest(tensors):
    leaves = keras.tree.flatten(tensors)
    return max(
        (float(ops.max(ops.abs(x))) for x in leaves if 0 not in x.shape), default=0
    )
