"""Branches whose output does not depend on the model's input."""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)


def remove_dead_branches(model):
    """The same model without the summands of additions that are constant.

    A convolution or dense layer whose kernel is all zero, and a batch normalization
    whose gamma is, makes the same output for every input, and so does what follows
    from it alone. Where an `Add` layer adds that to something else, only the constant
    is kept: one value per channel, added by a `Rescaling` layer, or nothing if it is
    zero. A constant that differs between positions, as behind padding, stays as it is,
    and so does one of open size.

    Args:
        model: a Functional model of plain layers. It is left untouched.

    Returns:
        A Functional `keras.Model` that computes the same in inference; `model` itself
        if it has no dead branch.
    """
    graph = Graph(model)
    constants = _constants(graph)
    sums = {}
    for call in graph.calls:
        offset = _constant_offset(graph, call, constants)
        if offset is not None:
            live = [i for i, x in enumerate(call.inputs) if id(x) not in constants]
            sums[id(call.operation)] = _SumOfSome(call.operation, live, offset)
    if not sums:
        return model
    smaller, pairs = rebuild(
        model, lambda layer: sums.get(id(layer)) or clone_layer(layer)
    )
    kept = {id(layer) for layer in Graph(smaller).layers().values()}
    for old, new in pairs:
        if id(new) in kept:
            copy_weights(old, new)
    return smaller


def _constants(graph):
    """`{id(tensor): float array (1, ...)}` of what no input of the model changes."""
    values = {}
    for call in graph.calls:
        if not isinstance(call.operation, layers.Layer):
            continue
        shapes = [x.shape[1:] for x in (*call.inputs, *call.outputs)]
        open_size = any(None in shape for shape in shapes)
        if len(call.outputs) != 1 or open_size or call.arguments[1].get("training"):
            continue
        known = [values.get(id(x)) for x in call.inputs]
        if call.inputs and _ignores_input(call.operation):
            known = [np.zeros((1, *x.shape[1:]), "float32") for x in call.inputs]
        if known and all(value is not None for value in known):
            values[id(call.outputs[0])] = _run(call, known)
    return values


def _ignores_input(layer):
    if isinstance(layer, _CONVOLUTIONS):
        return not ops.convert_to_numpy(layer.kernel).any()
    return (
        isinstance(layer, layers.BatchNormalization)
        and layer.gamma is not None
        and not ops.convert_to_numpy(layer.gamma).any()
    )


def _run(call, values):
    """The output of a call in inference, with values in place of its inputs."""
    values = iter(values)

    def value(leaf):
        is_tensor = keras.utils.is_keras_tensor(leaf)
        return ops.convert_to_tensor(next(values)) if is_tensor else leaf

    args, kwargs = keras.tree.map_structure(value, call.arguments)
    return ops.convert_to_numpy(call.operation(*args, **kwargs))


def _constant_offset(graph, call, constants):
    """What the constant summands of an `Add` layer add per channel, or None."""
    if not isinstance(call.operation, layers.Add):
        return None
    known = [constants[id(x)] for x in call.inputs if id(x) in constants]
    if len(known) in (0, len(call.inputs)) or len(graph.calls_of(call.operation)) != 1:
        return None
    # Summands of fewer positions than the sum would have to be broadcast.
    if any(x.shape != call.outputs[0].shape for x in call.inputs):
        return None
    total = sum(known).reshape(-1, known[0].shape[-1])
    return total[0] if (total == total[0]).all() else None


class _SumOfSome:
    """Called in place of an `Add` layer: some of its summands and a constant."""

    def __init__(self, add, live, offset):
        self.add = add
        self.live = live
        self.offset = offset

    def __call__(self, summands):
        summands = [summands[i] for i in self.live]
        x = clone_layer(self.add)(summands) if len(summands) > 1 else summands[0]
        if not self.offset.any():
            return x
        name = f"{self.add.name}_constant"
        return layers.Rescaling(1.0, self.offset.tolist(), name=name)(x)
