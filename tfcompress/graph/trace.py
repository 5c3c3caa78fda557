"""Channels on their way through a graph: what the rules for operations work on."""

import dataclasses
import typing

import keras
import numpy as np

from tfcompress.graph.union_find import UnionFind


@dataclasses.dataclass(frozen=True)
class Space:
    """The channels of a tensor.

    Attributes:
        axis: of the channels, counted from 0.
        ids: int array, the channel at each index of the axis; empty if the axis is
            open or the tensor has no axis but the batch.
    """

    axis: int
    ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Resized:
    """An operation that depends on the number of its channels.

    Attributes:
        name: of its first call.
        operation: the layer or operation.
        role: "producer", which sums over the channels it reads and makes new ones;
            "carrier", with weights per channel; or "" for one without weights.
        read, written: channel ids of its input and of its output.
        weights: `{attribute: {axis: ids}}`, the channels along the weights' axes.
        changes: function of `count` to the changed arguments of the operation;
            `count(ids)` is how many of an array of channels stay.
    """

    name: str
    operation: keras.Operation
    role: str
    read: np.ndarray
    written: np.ndarray
    weights: dict
    changes: typing.Callable


class Trace:
    """Walks along the calls of a graph, with one rule per operation.

    Attributes:
        union: the `UnionFind` over all channel ids.
        resized: `{id(operation): Resized}`.
        spaces: list of `(name of what makes it, Space)` of all tensors.
        frozen: list of `(ids, reason)` in the order in which they were found.
        merged: the same, for channels that were united with others.
        unknown: list of descriptions of the operations without a rule.

    Args:
        graph: a `tfcompress.graph.graph.Graph`.
        rule_of: function from a call to its rule, a function of this trace and the
            call; None if there is none.
    """

    def __init__(self, graph, rule_of):
        self.union = UnionFind()
        self.resized = {}
        self.spaces = []
        self.frozen = []
        self.merged = []
        self.unknown = []
        self._space_of = {}
        for tensor in graph.inputs:
            self.put_frozen(tensor, "it is the model's input", "input")
        for call in graph.calls:
            rule = rule_of(call)
            if rule is None:
                self.unknown.append(described(call))
            (rule or Trace.give_up)(self, call)
        for tensor in graph.outputs:
            self.freeze(self.space(tensor).ids, "the model returns them")
        self._unite_calls_of_models(graph.model_calls)

    def space(self, tensor):
        """The `Space` of a tensor."""
        return self._space_of[id(tensor)]

    def read(self, call, axis):
        """The channels on an axis of a call's only input, a `Space`.

        Channels that lie on another axis are frozen.
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

    def new(self, count):
        """Ids of new channels."""
        return self.union.new(count)

    def unite(self, call, arrays):
        """Ties the channels of arrays of one length, index by index."""
        for array in arrays[1:]:
            self.union.unite(arrays[0], array)
            self.merged.append((array, f"merged with others by {described(call)}"))

    def freeze(self, ids, reason):
        """Keeps channels from being removed."""
        self.frozen.append((ids, reason))

    def put(self, call, space, output=None):
        """Notes the channels of a call's output, its only one by default."""
        output = call.outputs[0] if output is None else output
        if output.shape[space.axis] != len(space.ids):
            self.give_up(call)
        else:
            self._put(output, space, call.name)

    def give_up(self, call, reason=None):
        """Freezes everything that a call reads and makes."""
        for tensor in call.inputs:
            self.freeze(self.space(tensor).ids, reason or f"read by {described(call)}")
        for tensor in call.outputs:
            self.put_frozen(tensor, reason or f"made by {described(call)}", call.name)

    def put_frozen(self, tensor, reason, name):
        """Frozen channels on the last axis of a tensor."""
        axis = max(len(tensor.shape) - 1, 0)
        self._put(tensor, self._frozen_space(tensor, axis, reason), name)

    def resize(self, call, role, read, written, weights, changes):
        """Notes what depends on the number of channels; see `Resized`.

        Further calls of the same layer need the same channels.
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
        """A nested model has one input shape in all of its calls."""
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


def described(call):
    """A call's name and the class of what is called, as text."""
    return f"'{call.name}' ({type(call.operation).__name__})"
