"""Finalized models that compute as the operators of LiteRT's int8 files do.

Keras and LiteRT agree on the values before a rounding but for the last bits of float32.
A value in the middle between two levels then falls to either side, and later layers
multiply the difference. In these models products, sums and means are rounded exactly as
in the file.
"""

from typing import Any

import keras
import numpy as np

from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.levels.stored_tensors import (
    AVERAGE_POOLS,
    is_relu,
    levels_of_tensors,
    passes_levels,
)
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import (
    IntegerAdd,
    PackedProduct,
    QuantizeActivation,
    RoundMeans,
)
from tfcompress.layers.kernel import copy_other_weights, value_of

# Bits of a tensor that a file stores as it is. Levels of fewer are on a finer grid.
_BITS = 8


def on_integers(model: keras.Model) -> keras.Model:
    """Returns a copy of a finalized model that computes with integers where it can.

    That is in packed layers, in sums of two tensors and in means by pooling, with
    inputs and results on levels.

    Args:
        model: a Functional model with packed layers and `QuantizeActivation`s.
    """
    found = _Levels(Graph(model))
    levels = {id(x): found.of(x) for x in found.operations()}
    added: list[tuple[IntegerAdd | RoundMeans, list[QuantizeActivation]]] = []

    def replace(layer):
        if isinstance(layer, QuantizeActivation):
            return clone_layer(layer, integer=True)
        known = levels.get(id(layer))
        if known is None:
            return clone_layer(layer)
        if isinstance(layer, PackedProduct):
            return clone_layer(layer, integer=True)
        if isinstance(layer, keras.layers.Add):
            added.append((IntegerAdd(name=layer.name), known))
            return added[-1][0]
        rounded = RoundMeans(known[-1].signed, name=f"{layer.name}_rounded")
        added.append((rounded, known))
        return [clone_layer(layer), rounded]

    def replace_operation(operation):
        known = levels.get(id(operation))
        if known is None:
            return clone_layer(operation)
        layer = IntegerAdd()
        added.append((layer, known))
        return lambda a, b: layer([a, b])

    copy, pairs = rebuild(model, replace, replace_operation)
    for layer, known in added:
        layer.set_steps(_steps(known))
    for old, new in pairs:
        steps = levels.get(id(old))
        if steps is None:
            copy_weights(old, new)
        elif isinstance(new, PackedProduct):
            _copy_product(old, new)
            new.set_steps(_steps(steps))
    return copy


def in_float(model: keras.Model) -> keras.Model:
    """Returns a model that computes the same in float, up to ties of roundings.

    Args:
        model: a Functional model. It is returned itself if it computes in float.
    """
    if not any(_is_integer(layer) for layer in Graph(model).layers().values()):
        return model

    def replace(layer):
        if isinstance(layer, RoundMeans):
            return None
        if isinstance(layer, IntegerAdd):
            return keras.layers.Add(name=layer.name)
        changes = {"integer": False} if _is_integer(layer) else {}
        return clone_layer(layer, **changes)

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if isinstance(old, PackedProduct):
            _copy_product(old, new)
        elif not isinstance(old, (IntegerAdd, RoundMeans)):
            copy_weights(old, new)
    return copy


class _Levels:
    """Levels that the calls of a graph read and write.

    Args:
        graph: `Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._made = levels_of_tensors(graph)
        self._calls: dict[int, list[Call]] = {}
        for call in graph.calls:
            self._calls.setdefault(id(call.operation), []).append(call)

    def operations(self) -> list[keras.Operation]:
        """Returns the layers and operations that integer forms may replace."""
        firsts = [calls[0] for calls in self._calls.values()]
        return [
            call.operation
            for call in firsts
            if isinstance(call.operation, PackedProduct)
            or type(call.operation) in AVERAGE_POOLS
            or _is_sum(call)
        ]

    def of(self, operation: keras.Operation) -> list[QuantizeActivation] | None:
        """Returns the layers that round its inputs, and then that of its results.

        None stands for tensors that are not on levels, or on others in another call.
        """
        calls = self._calls[id(operation)]
        places = zip(*(call.inputs for call in calls), strict=True)
        found = [_only([self._made.get(id(x)) for x in tensors]) for tensors in places]
        found.append(_only([self._rounds(call.outputs[0]) for call in calls]))
        if None in found or found[-1].bits != _BITS:
            return None
        if _is_sum(calls[0]):
            return found if IntegerAdd.takes(_steps(found)) else None
        is_mean = type(operation) in AVERAGE_POOLS
        return None if is_mean and found[0] is not found[1] else found

    def _rounds(self, tensor: keras.KerasTensor) -> QuantizeActivation | None:
        """The layer that rounds a tensor, or the ReLU of it."""
        if self._graph.is_output(tensor):
            return None
        return _only([self._rounds_in(call) for call in self._graph.consumers(tensor)])

    def _rounds_in(self, call: Call) -> QuantizeActivation | None:
        operation = call.operation
        if isinstance(operation, QuantizeActivation):
            return operation
        if len(call.inputs) == 1 and (is_relu(operation) or passes_levels(operation)):
            return _only([self._rounds(tensor) for tensor in call.outputs])
        return None


def _only(found: list[Any]) -> Any:
    """The one object of a list that has no other, or None."""
    return found[0] if len({id(x) for x in found}) == 1 else None


def _is_sum(call: Call) -> bool:
    """Whether a call adds two tensors of the same number of axes."""
    kind = type(call.operation)
    is_add = kind.__name__ == "Add" and kind.__module__.startswith("keras.")
    axes = [len(x.shape) for x in call.inputs]
    return is_add and len(axes) == 2 and axes[0] == axes[1]


def _steps(levels: list[QuantizeActivation]) -> np.ndarray:
    return np.array([value_of(layer.scale) for layer in levels], np.float32)


def _is_integer(layer):
    if isinstance(layer, (PackedProduct, QuantizeActivation)):
        return layer.integer
    return isinstance(layer, (IntegerAdd, RoundMeans))


def _copy_product(old, new):
    """Copies the weights that both forms of a packed layer have."""
    copy_other_weights(old, new)
    new.kernel_variable.assign(value_of(old.kernel_variable))
    new.kernel_scale.assign(value_of(old.kernel_scale))
