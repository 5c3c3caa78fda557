"""Channel ids of every tensor of a graph: the state that the rules work on."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np

from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.union_find import UnionFind

# From an int array of channels to the number of them that stay.
Count: TypeAlias = Callable[[np.ndarray], int]
# From a `Count` to the arguments of an operation that change, by name.
Changes: TypeAlias = Callable[[Count], dict[str, Any]]
# By a weight's attribute and axis, the channel at each index of the axis.
Weights: TypeAlias = dict[str, dict[int, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Space:
    """Channels of a tensor.

    Attributes:
        axis: int. Axis of the channels, counted from 0.
        ids: int array (n,). Channel at each index of the axis; empty if the axis is
            of open size or the tensor has no axis but the batch.
    """

    axis: int
    ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Resized:
    """Layer or operation whose arguments or weights depend on its channels.

    Attributes:
        name: str. Name of its first call.
        operation: `keras.Operation`. The layer or operation.
        role: str. "producer": sums over the channels that it reads and makes new
            ones; "carrier": has weights for each channel; "": has no weights.
        read: int array (n,). Channels of its input.
        written: int array (m,). Channels of its output.
        weights: `{attribute: {axis: int array}}`. Channels along axes of its weights.
        changes: function from `count` to a dictionary of the arguments that change.
            `count` maps an int array of channels to the number of them that stay.
    """

    name: str
    operation: keras.Operation
    role: str
    read: np.ndarray
    written: np.ndarray
    weights: Weights
    changes: Changes


class Trace:
    """Channel ids of all tensors of a graph, found by one rule per operation.

    Attributes:
        union: `UnionFind`. Over all channel ids; its classes are dependency groups.
        resized: `{id(operation): Resized}`. Operations that depend on their channels.
        spaces: list of `(name, Space)`. Channels of each tensor, with the name of the
            call that makes it.
        frozen: list of `(int array, reason)`. Frozen channels, in the order in which
            they were found.
        merged: list of `(int array, reason)`. Channels that were united with others.
        unknown: list of str. Descriptions of the operations without a rule.

    Args:
        graph: `tfcompress.graph.Graph`.
        rule_of: function from a call to its rule, or to None. A rule is a function of
            this trace and the call.
    """

    def __init__(self, graph: Graph, rule_of: "Callable[[Call], Rule | None]") -> None:
        self.union = UnionFind()
        self.resized: dict[int, Resized] = {}
        self.spaces: list[tuple[str, Space]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.merged: list[tuple[np.ndarray, str]] = []
        self.unknown: list[str] = []
        self._space_of: dict[int, Space] = {}
        for tensor in graph.inputs:
            self.put_frozen(tensor, "it is the model's input", "input")
        for call in graph.calls:
            rule = rule_of(call)
            if rule is None:
                self.unknown.append(described(call))
            (rule or Trace.freeze_call)(self, call)
        for tensor in graph.outputs:
            self.freeze(self.space(tensor).ids, "the model returns them")
        self._unite_calls_of_models(graph.model_calls)

    def space(self, tensor: keras.KerasTensor) -> Space:
        """The channels of a tensor."""
        return self._space_of[id(tensor)]

    def read(self, call: Call, axis: int) -> Space:
        """The channels on an axis of a call's only input.

        Channels of the input that lie on another axis are frozen.
        """
        (tensor,) = call.inputs
        axis %= len(tensor.shape)
        space = self.space(tensor)
        if space.axis == axis:
            return space
        self.freeze(
            space.ids,
            f"{described(call)} has its channels on axis {axis}, not {space.axis}",
        )
        return self._frozen_space(tensor, axis, f"{described(call)} takes axis {axis}")

    def new(self, count: int) -> np.ndarray:
        """Ids of `count` new channels, an int array."""
        return self.union.new(count)

    def unite(self, call: Call, arrays: list[np.ndarray]) -> None:
        """Ties the channels of arrays of one length, index by index."""
        for array in arrays[1:]:
            self.union.unite(arrays[0], array)
            self.merged.append((array, f"merged with others by {described(call)}"))

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Keeps channels from being removed."""
        self.frozen.append((ids, reason))

    def put(
        self, call: Call, space: Space, output: keras.KerasTensor | None = None
    ) -> None:
        """Sets the channels of a call's output, by default its only one.

        An output of another number of channels freezes the call.
        """
        output = call.outputs[0] if output is None else output
        if output.shape[space.axis] != len(space.ids):
            self.freeze_call(call)
        else:
            self._put(output, space, call.name)

    def put_frozen(self, tensor: keras.KerasTensor, reason: str, name: str) -> None:
        """Sets the channels of a tensor to new, frozen ones on its last axis."""
        axis = max(len(tensor.shape) - 1, 0)
        self._put(tensor, self._frozen_space(tensor, axis, reason), name)

    def freeze_call(self, call: Call, reason: str | None = None) -> None:
        """Freezes all channels that a call reads and makes."""
        for tensor in call.inputs:
            self.freeze(self.space(tensor).ids, reason or f"read by {described(call)}")
        for tensor in call.outputs:
            self.put_frozen(tensor, reason or f"made by {described(call)}", call.name)

    def resize(
        self,
        call: Call,
        role: str,
        read: np.ndarray,
        written: np.ndarray,
        weights: Weights,
        changes: Changes,
    ) -> None:
        """Adds the `Resized` of a call.

        Further calls of the same layer are tied to the channels of the first.
        """
        new = Resized(call.name, call.operation, role, read, written, weights, changes)
        old = self.resized.setdefault(id(call.operation), new)
        if old is not new:
            self._tie(call, old.read, read)
            self._tie(call, old.written, written)

    def _tie(self, call, left, right):
        if len(left) == len(right):
            self.unite(call, [left, right])
        else:
            reason = f"{described(call)} is called on different numbers of channels"
            self.freeze(np.concatenate([left, right]), reason)

    def _put(self, tensor, space, name):
        self._space_of[id(tensor)] = space
        self.spaces.append((name, space))

    def _frozen_space(self, tensor, axis, reason):
        size = tensor.shape[axis] if len(tensor.shape) > 1 else None
        ids = self.new(size or 0)
        self.freeze(ids, reason)
        return Space(axis, ids)

    def _unite_calls_of_models(self, model_calls):
        """Ties the inputs of a nested model's calls: it has one input shape."""
        first = {}
        for call in model_calls:
            spaces = [self.space(tensor) for tensor in call.inputs]
            for old, new in zip(
                first.setdefault(id(call.operation), spaces), spaces, strict=True
            ):
                if old.axis != new.axis:
                    reason = f"{described(call)} is called on different axes"
                    self.freeze(np.concatenate([old.ids, new.ids]), reason)
                elif old is not new:
                    self._tie(call, old.ids, new.ids)


# Applies an operation to the channel ids of a `Trace`.
Rule: TypeAlias = Callable[[Trace, Call], None]


def described(call: Call) -> str:
    """A call's name and the class of its operation, as text."""
    return f"'{call.name}' ({type(call.operation).__name__})"
