"""Branches whose output does not depend on the model's input."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.masks import Masks
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)


def remove_dead_branches(model: keras.Model) -> keras.Model:
    """Returns the model without the constant summands of its additions.

    A convolution or dense layer with a kernel of zeros ignores its input, and so does
    a batch normalization with a gamma of zeros. Its output is constant, as are the
    outputs of the layers that read no other tensor. Where an `Add` layer has such a
    summand, a `Rescaling` layer adds the constant, one value per channel. A constant of
    zero needs no layer. A summand that differs between positions, as after padding,
    stays, and so does one of open size. So does one whose mask the sum needs.

    Args:
        model: Functional model of plain layers. It is left untouched.

    Returns:
        A Functional `keras.Model` that computes the same in inference; `model` itself
        if it has no dead branch.
    """
    graph = Graph(model)
    masks = Masks(graph)
    constants = _constants(graph, masks)
    sums = {}
    for call in graph.calls:
        offset = _constant_offset(graph, call, constants)
        live = [i for i, x in enumerate(call.inputs) if id(x) not in constants]
        if offset is not None and masks.merged(
            [call.inputs[i] for i in live]
        ) == masks.merged(call.inputs):
            is_output = graph.is_output(call.outputs[0])
            sums[id(call.operation)] = _SumOfSome(
                call.operation, live, offset, is_output
            )
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


def _constants(graph: Graph, masks: Masks) -> dict[int, np.ndarray]:
    """`{id(tensor): float array (1, ...)}` of the tensors that are constant."""
    values: dict[int, np.ndarray] = {}
    for call in graph.calls:
        if not isinstance(call.operation, layers.Layer):
            continue
        shapes = [x.shape[1:] for x in (*call.inputs, *call.outputs)]
        open_size = any(None in shape for shape in shapes)
        if len(call.outputs) != 1 or open_size or call.arguments[1].get("training"):
            continue
        if masks.reads(call):
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
    """The output of a call in inference, an array, with values for its inputs."""
    values = iter(values)

    def value(leaf):
        is_tensor = keras.utils.is_keras_tensor(leaf)
        return ops.convert_to_tensor(next(values)) if is_tensor else leaf

    args, kwargs = keras.tree.map_structure(value, call.arguments)
    return ops.convert_to_numpy(call.operation(*args, **kwargs))


def _constant_offset(
    graph: Graph, call: Call, constants: dict[int, np.ndarray]
) -> np.ndarray | None:
    """The sum of an `Add` layer's constant summands, float (channels,), or None.

    None if no summand or every one is constant, if the sum differs between positions,
    or if the layer is called more than once.
    """
    if not isinstance(call.operation, layers.Add):
        return None
    known = [constants[id(x)] for x in call.inputs if id(x) in constants]
    if len(known) in (0, len(call.inputs)) or len(graph.calls_of(call.operation)) != 1:
        return None
    # A summand of fewer positions than the sum is broadcast.
    if any(x.shape != call.outputs[0].shape for x in call.inputs):
        return None
    total = np.asarray(sum(known)).reshape(-1, known[0].shape[-1])
    return total[0] if (total == total[0]).all() else None


class _SumOfSome:
    """Replacement of an `Add` layer: adds some of its summands and a constant.

    Args:
        add: the `Add` layer.
        live: list of int. Indices of the summands that are not constant.
        offset: float array (channels,). Sum of the constant summands.
        is_output: bool. Whether the model returns the sum, under the layer's name.
    """

    def __init__(
        self,
        add: keras.layers.Layer,
        live: list[int],
        offset: np.ndarray,
        is_output: bool,
    ) -> None:
        self.add = add
        self.live = live
        self.offset = offset
        self.is_output = is_output

    def __call__(self, summands: list[keras.KerasTensor]) -> Any:
        summands = [summands[i] for i in self.live]
        add_name, is_shifted = self.add.name, self.offset.any()
        shift_name = f"{add_name}_constant"
        if self.is_output and is_shifted:  # the last layer names the output
            add_name, shift_name = f"{add_name}_live", add_name
        x = summands[0]
        if len(summands) > 1:
            x = clone_layer(self.add, name=add_name)(summands)
        if not is_shifted:
            return x
        return layers.Rescaling(1.0, self.offset.tolist(), name=shift_name)(x)
