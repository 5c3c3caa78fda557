"""Rules of operations that join tensors: sums, products, concatenation."""

from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.trace import Space, Trace, described


def merge(trace: Trace, call: Call) -> None:
    """Ties the channels of operands that are joined element by element.

    An operand that is broadcast along the channels is not tied.
    """
    ndim = len(call.outputs[0].shape)
    constants = [
        leaf
        for leaf in keras.tree.flatten(call.arguments)
        if leaf is not None and not keras.utils.is_keras_tensor(leaf)
    ]
    # Shapes are aligned at their ends.
    spaces = [trace.space(tensor) for tensor in call.inputs]
    places = [
        space.axis - len(tensor.shape) + ndim
        for tensor, space in zip(call.inputs, spaces, strict=True)
    ]
    wide = [i for i, space in enumerate(spaces) if len(space.ids) != 1]
    wide = wide or list(range(len(spaces)))
    axis = places[wide[0]]
    others = [call.inputs[i] for i in range(len(spaces)) if i not in wide]
    sizes = [_size(constant, axis - ndim) for constant in constants]
    if any(size != 1 for size in sizes):
        trace.freeze_call(call, f"{described(call)} has a constant for each channel")
        return
    if (
        any(places[i] != axis for i in wide)
        or len({len(spaces[i].ids) for i in wide}) > 1
        or any(_size(tensor, axis - ndim) != 1 for tensor in others)
    ):
        trace.freeze_call(call)
        return
    for tensor in others:
        trace.freeze(trace.space(tensor).ids, f"{described(call)} broadcasts it")
    operands = [spaces[i] for i in wide]
    trace.unite(call, [space.ids for space in operands])
    trace.put(call, Space(axis, operands[0].ids))


def concatenate(trace: Trace, call: Call) -> None:
    """Joins channels in a row, or ties them if another axis is joined."""
    (output,) = call.outputs
    axis = call.operation.axis % len(output.shape)
    spaces = [trace.space(tensor) for tensor in call.inputs]
    operands = keras.tree.flatten(call.arguments[0])
    same_axis = len({space.axis for space in spaces}) == 1
    same_size = len({len(space.ids) for space in spaces}) == 1
    ids = [space.ids for space in spaces]
    if len(operands) != len(spaces) or not same_axis:
        trace.freeze_call(call)
    elif axis == spaces[0].axis:
        trace.put(call, Space(axis, np.concatenate(ids)))
    elif same_size:
        trace.unite(call, ids)
        trace.put(call, Space(spaces[0].axis, ids[0]))
    else:
        trace.freeze_call(call)


_LAYERS = (
    layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply,
    layers.Subtract,
)  # fmt: skip
_OPERATIONS = (
    "add", "divide", "maximum", "minimum", "multiply", "power", "subtract",
    "truedivide",
)  # fmt: skip
LAYERS = {layers.Concatenate: concatenate, **dict.fromkeys(_LAYERS, merge)}
OPERATIONS = {"concatenate": concatenate, **dict.fromkeys(_OPERATIONS, merge)}


def _size(value: Any, axis: int) -> int | None:
    """Size of a tensor or constant along an axis counted from the end, or one."""
    shape = tuple(getattr(value, "shape", np.shape(value)))
    return shape[axis] if -axis <= len(shape) else 1
