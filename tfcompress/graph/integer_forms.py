"""Finalized models that compute as the operators of LiteRT's int8 files do.

Keras and LiteRT agree on the values before a rounding but for the last bits of float32.
A value in the middle between two levels then falls to either side, and later layers
multiply the difference. In these models products and means are rounded exactly as the
file does.
"""

from typing import Any

import keras

from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.graph.stored_tensors import (
    AVERAGE_POOLS,
    is_relu,
    levels_of_tensors,
    passes_levels,
)
from tfcompress.layers import PackedProduct, QuantizeActivation, RoundMeans
from tfcompress.layers.kernel import copy_other_weights, value_of

# Bits of a tensor that a file stores as it is. Levels of fewer are on a finer grid.
_BITS = 8


def on_integers(model: keras.Model) -> keras.Model:
    """Returns a copy of a finalized model that computes with integers where it can.

    That is in packed layers whose inputs and results are on levels, and in means of
    levels by pooling.

    Args:
        model: a Functional model with packed layers and `QuantizeActivation`s.
    """
    found = _Levels(Graph(model))
    steps = {
        id(layer): found.of(layer)
        for layer in found.graph.layers().values()
        if isinstance(layer, (PackedProduct, *AVERAGE_POOLS))
    }
    means: dict[int, RoundMeans] = {}

    def replace(layer):
        if steps.get(id(layer)) is None:
            return clone_layer(layer)
        if isinstance(layer, PackedProduct):
            return clone_layer(layer, integer=True)
        signed = steps[id(layer)][1].signed
        means[id(layer)] = RoundMeans(signed, name=f"{layer.name}_rounded")
        return [clone_layer(layer), means[id(layer)]]

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if id(old) in means:
            means[id(old)].scale.assign(value_of(steps[id(old)][1].scale))
        elif steps.get(id(old)) is not None:
            _copy_product(old, new)
            new.steps.assign([value_of(x.scale) for x in steps[id(old)]])
        else:
            copy_weights(old, new)
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
        changes = {"integer": False} if _is_integer(layer) else {}
        return clone_layer(layer, **changes)

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if _is_integer(old):
            _copy_product(old, new)
        else:
            copy_weights(old, new)
    return copy


class _Levels:
    """Levels that layers of a graph read and write.

    Attributes:
        graph: `Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._made = levels_of_tensors(graph)

    def of(
        self, layer: keras.layers.Layer
    ) -> tuple[QuantizeActivation, QuantizeActivation] | None:
        """Returns the layers that round its inputs and its results, or None.

        None stands for inputs and results that are not on the same levels in all calls.
        """
        calls = self.graph.calls_of(layer)
        sources = [self._made.get(id(call.inputs[0])) for call in calls]
        source = _only(sources)
        target = _only([self._rounds(call.outputs[0]) for call in calls])
        if source is None or target is None or target.bits != _BITS:
            return None
        return source, target

    def _rounds(self, tensor: keras.KerasTensor) -> QuantizeActivation | None:
        """The layer that rounds a tensor, or the ReLU of it."""
        if self.graph.is_output(tensor):
            return None
        return _only([self._rounds_in(call) for call in self.graph.consumers(tensor)])

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


def _is_integer(layer):
    return isinstance(layer, RoundMeans) or getattr(layer, "integer", False) is True


def _copy_product(old, new):
    """Copies the weights that both forms of a packed layer have."""
    copy_other_weights(old, new)
    new.kernel_variable.assign(value_of(old.kernel_variable))
    new.kernel_scale.assign(value_of(old.kernel_scale))
