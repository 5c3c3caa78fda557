"""Marks in a float file that say where the model quantizes activations.

The converter fuses and renames operations, so that a layer's place in the file is not
known. In place of each `QuantizeActivation` it gets the minimum of the tensor and a
number that no tensor reaches. That number tells the layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat.litert_private import schema
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import QuantizeActivation
from tfcompress.litert import flatbuffer
from tfcompress.litert.integer.input_levels import Levels, levels_of
from tfcompress.types import Tensor

# The number of layer i is `_FIRST * (1 + i / _COUNT)`, exact in float32.
_FIRST = 2.0**100
_COUNT = 2**20
# Operators whose results are some of their inputs, in the same scale. Levels of what
# reads a result are levels of the input.
PASSING = (
    "MAX_POOL_2D", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "SLICE",
    "STRIDED_SLICE", "RESIZE_NEAREST_NEIGHBOR",
)  # fmt: skip
# The same of several inputs.
JOINING = ("CONCATENATION", "MAXIMUM", "PACK")
# Operators whose results do not depend on the values of their inputs.
READING_NO_VALUES = ("SHAPE",)


class _Marker(keras.layers.Layer):
    """Layer that marks a tensor, and leaves its values as they are."""

    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number
        self.supports_masking = True

    def call(self, x: Tensor) -> Tensor:
        return ops.minimum(x, _FIRST * (1 + self.number / _COUNT))


def marked(model: keras.Model) -> tuple[keras.Model, list[Levels]]:
    """Returns a copy of a model with marks in place of `QuantizeActivation` layers.

    Args:
        model: a Functional model.

    Returns:
        `(copy, levels)`: the model, and the levels of each mark by its number.

    Raises:
        ValueError: if a layer has bits that int8 cannot represent.
    """
    levels: list[Levels] = []

    def replace(layer):
        if not isinstance(layer, QuantizeActivation):
            return clone_layer(layer)
        levels.append(levels_of(layer))
        return _Marker(len(levels) - 1, name=layer.name)

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if not isinstance(new, _Marker):
            copy_weights(old, new)
    return copy, levels


@dataclasses.dataclass
class Marks:
    """Levels of the tensors of a file, whose names are unique.

    Attributes:
        read: `{(name of the reading operator's first result, place of the input):
            Levels}`.
        returned: `{(number of the graph, place of the output): Levels}`.
        made: `{tensor's name: Levels}`. Tensors that all of their readers read on these
            levels.
    """

    read: dict[tuple[bytes, int], Levels] = dataclasses.field(default_factory=dict)
    returned: dict[tuple[int, int], Levels] = dataclasses.field(default_factory=dict)
    made: dict[bytes, Levels] = dataclasses.field(default_factory=dict)


def take_out(model: schema.ModelT, levels: Sequence[Levels]) -> Marks:
    """Removes the marks of a file, whose readers read the marked tensors.

    Args:
        model: parsed file of a `marked` model. It is changed.
        levels: levels of each mark.

    Returns:
        The `Marks`.
    """
    marks = Marks()
    for number, graph in enumerate(model.subgraphs):
        # Source and levels of the result of each mark.
        found: dict[int, tuple[int, Levels]] = {}
        operators, graph.operators = graph.operators, []
        for operator in operators:
            mark = _mark_of(model, graph, operator)
            if mark is None:
                graph.operators.append(operator)
            else:
                found[int(operator.outputs[0])] = mark[1], levels[mark[0]]
        _note_made(model, graph, found, marks)
        _note_readers(graph, number, found, marks)
        _connect_sources(model, graph, found)
        _pass_on(model, graph, number, marks)
    flatbuffer.drop_unused_tensors(model)
    return marks


def _mark_of(model, graph, operator):
    """`(number of the mark, index of its source)` of an operator, None without one."""
    if flatbuffer.operator_name(model, operator) != "MINIMUM":
        return None
    for constant, source in (operator.inputs, operator.inputs[::-1]):
        tensor = graph.tensors[constant]
        data = flatbuffer.constant(model, tensor)
        if data is not None and tensor.type == schema.TensorType.FLOAT32:
            values = np.unique(data.view(np.float32))
            if len(values) == 1 and _FIRST <= values[0] < 2 * _FIRST:
                return round((float(values[0]) / _FIRST - 1) * _COUNT), int(source)
    return None


def _note_made(model, graph, found, marks):
    """Notes tensors that have no other readers than marks of the same levels."""
    by_source: dict[int, set[Levels]] = {}
    for source, levels in found.values():
        by_source.setdefault(source, set()).add(levels)
    lists = [graph.outputs]
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) not in READING_NO_VALUES:
            lists.append(operator.inputs)
    others = {int(index) for indices in lists for index in indices}
    for source, levels in by_source.items():
        if len(levels) == 1 and source not in others:
            marks.made[graph.tensors[source].name] = next(iter(levels))


def _note_readers(graph, number, found, marks):
    """Notes the levels on which operators, and the graph's caller, read tensors."""
    for operator in graph.operators:
        name = graph.tensors[operator.outputs[0]].name
        for place, index in enumerate(operator.inputs):
            if index in found:
                marks.read[name, place] = found[index][1]
    for place, index in enumerate(graph.outputs):
        if index in found:
            marks.returned[number, place] = found[index][1]


def _connect_sources(model, graph, found):
    """Connects the readers of marks with the tensors before these."""
    for operator in graph.operators:
        operator.inputs = _sources(operator.inputs, found)
    graph.outputs = _sources(graph.outputs, found)
    for signature in model.signatureDefs or []:
        if graph is model.subgraphs[signature.subgraphIndex]:
            for entry in signature.outputs:
                (entry.tensorIndex,) = _sources([entry.tensorIndex], found)


def _sources(indices, found):
    sources = []
    for index in indices:
        while index in found:
            index = found[index][0]
        sources.append(index)
    return np.array(sources, np.int32)


def _pass_on(model, graph, number, marks):
    """Gives results of operators that pass levels on, and all readers, the levels."""
    names = [tensor.name for tensor in graph.tensors]
    for operator in graph.operators:
        kind = flatbuffer.operator_name(model, operator)
        data = operator.inputs if kind in JOINING else operator.inputs[:1]
        known = {marks.made.get(names[index]) for index in data}
        if kind in PASSING + JOINING and len(known) == 1 and None not in known:
            marks.made.setdefault(names[operator.outputs[0]], known.pop())
    for operator in graph.operators:
        for place, index in enumerate(operator.inputs):
            if index >= 0 and names[index] in marks.made:
                key = names[operator.outputs[0]], place
                marks.read.setdefault(key, marks.made[names[index]])
    for place, index in enumerate(graph.outputs):
        if names[index] in marks.made:
            marks.returned.setdefault((number, place), marks.made[names[index]])
