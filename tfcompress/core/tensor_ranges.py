"""Learned ranges of the tensors between layers, for files with int8 activations.

Such a file stores every tensor in 8 bits: the inputs of compressed layers, and also the
operands of additions, the results of pooling, and the sums before a softmax. A student
rounds each of them once, where the file does. The range is then trained, and the file
computes what the student computes.
"""

from typing import Any

import keras

from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import (
    StoredTensor,
    StoredTensors,
    has_inner_tensor,
    maker_of,
)
from tfcompress.layers import QuantizedTensor, TrainingForm
from tfcompress.layers.registry import forms_of
from tfcompress.quantizers import BitSharingActivation, FixedActivation

BITS = 8
# End of a layer's name whose name goes to the layer that rounds its results.
UNROUNDED = "_unrounded"


class TensorRanges:
    """Layers of a student that quantize tensors between other layers.

    A tensor that one layer alone reads, which quantizes its input, has no layer of its
    own. Tensors that int8 operators need in one scale have one layer in common.

    Attributes:
        without_own_range: set of int. Ids of the layers whose inputs are quantized by
            another layer, in place of a quantizer of their own.

    Args:
        graph: `Graph` of the plan's model.
        quantizing: ids of the layers that quantize their inputs themselves.
    """

    def __init__(self, graph: Graph, quantizing: set[int]) -> None:
        self.without_own_range: set[int] = set()
        self._graph = graph
        self._after: dict[tuple[int, int], list[keras.layers.Layer]] = {}
        self._inner: dict[int, list[keras.layers.Layer]] = {}
        self._renamed: set[int] = set()
        stored = StoredTensors(graph)
        for layer in graph.layers().values():
            if forms_of(layer) is not None and has_inner_tensor(layer):
                self._add_inner(layer)
        for tensor in stored.all:
            if tensor.fixed_step is not None:
                self._add_fixed(tensor, tensor.fixed_step)
        groups = _groups(stored)
        for group in _groups_to_quantize(
            groups, quantizing, self.without_own_range, graph
        ):
            self._add_group(group)

    def layers_after(
        self, operation: keras.Operation, number: int
    ) -> list[keras.layers.Layer]:
        """Returns the layers that are called on the result of a call.

        Args:
            operation: layer or operation of the plan's model.
            number: number of its call, see `graph.graph.Call`.
        """
        inner = self._inner.get(id(operation), [])
        return [*inner, *self._after.get((id(operation), number), [])]

    def adapt(self, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
        """Gives a student's unbuilt layer the place before its `layers_after`.

        Its activation and its name go to one of these, where they have to. A training
        layer learns that its student has the ranges.

        Args:
            old: layer of the plan's model.
            new: layer in its place.
        """
        if isinstance(new, TrainingForm):
            new.on_learned_levels()
        if id(old) in self._inner:
            new.activation = keras.activations.linear
        if id(old) in self._renamed:
            new.name = old.name + UNROUNDED

    def _add_inner(self, layer):
        """Quantizes the sums of a layer before an activation of its own operator."""
        dtype = layer.dtype_policy
        levels = QuantizedTensor(
            BitSharingActivation((BITS,), True), name=f"{layer.name}_sums", dtype=dtype
        )
        activation = keras.layers.Activation(
            layer.activation, name=layer.name, dtype=dtype
        )
        self._inner[id(layer)] = [levels, activation]
        self._renamed.add(id(layer))

    def _add_fixed(self, tensor, step):
        # Probabilities stay exact where a loss reads them.
        if _can_be_followed(tensor, self._graph) and None not in tensor.readers:
            self._add(tensor, FixedActivation(step, tensor.signed))

    def _add_group(self, group):
        rounded = [tensor for tensor in group if tensor.is_rounded]
        rounded.sort(key=lambda tensor: None not in tensor.readers)  # for their names
        signed = any(tensor.signed for tensor in rounded)
        layer = None
        for tensor in rounded:
            layer = self._add(tensor, BitSharingActivation((BITS,), signed), layer)

    def _add(self, tensor, quantizer, layer=None):
        """Quantizes a tensor by a layer, or by a new one with a quantizer."""
        operation, number = maker_of(tensor)
        if layer is None:
            layer = QuantizedTensor(
                quantizer,
                name=self._name_after(tensor),
                dtype=getattr(operation, "dtype_policy", None),
            )
        self._after[id(operation), number] = [layer]
        return layer

    def _name_after(self, tensor):
        """Name of a layer after a call, which is the call's if the model returns it."""
        operation, number = maker_of(tensor)
        if tensor.call is None:
            return f"{operation.name}_levels"
        is_named = self._graph.is_output(tensor.tensor) and "/" not in tensor.call.name
        if is_named and id(operation) not in self._renamed:
            self._renamed.add(id(operation))
            return operation.name
        return f"{tensor.call.name.replace('/', '_')}_levels_{number}"


def _groups(stored: StoredTensors) -> list[list[StoredTensor]]:
    """Tensors by their scale, without those whose scale an operator prescribes.

    One call has one scale, also where its nested model is called several times.
    """
    groups: list[list[StoredTensor]] = []
    found: dict[Any, list[StoredTensor]] = {}
    for tensor in stored.all:
        if tensor.fixed_step is not None:
            continue
        operation, number = maker_of(tensor)
        keys = (tensor.scale, (id(operation), number))
        tied = {id(found[key]): found[key] for key in keys if key in found}
        group = [member for other in tied.values() for member in other] + [tensor]
        groups = [other for other in groups if id(other) not in tied] + [group]
        for member in group:
            operation, number = maker_of(member)
            found[member.scale] = found[id(operation), number] = group
    return groups


def _groups_to_quantize(
    groups: list[list[StoredTensor]],
    quantizing: set[int],
    without_own_range: set[int],
    graph: Graph,
) -> list[list[StoredTensor]]:
    """Returns the groups of tensors that get a layer.

    Args:
        groups: tensors by their scale.
        quantizing: ids of the layers that quantize their inputs themselves.
        without_own_range: empty set. It gets the ids of those that read such a group.
        graph: `Graph` of the tensors.
    """
    possible, keep_own = [], set()
    for group in groups:
        readers = _readers(group)
        if all(
            _can_be_followed(tensor, graph) for tensor in group if tensor.is_rounded
        ):
            possible.append((group, readers))
        else:
            keep_own.update(readers)
    own = set(quantizing)
    while True:
        # One layer that quantizes its input suffices, if it alone reads the group.
        chosen = [x for x in possible if x[1] and not (len(x[1]) == 1 and x[1] <= own)]
        lost = own & set().union(*(readers for _, readers in chosen))
        if not lost - keep_own:
            break
        own -= lost - keep_own
    without_own_range.update(quantizing - own)
    return [group for group, _ in chosen]


def _readers(group: list[StoredTensor]) -> set[int]:
    """Returns ids of the operations that read tensors of a group, 0 for an output.

    A concatenation of them is left out: its result is in the group, on the same levels.
    """
    joined = {id(x.call) for x in group if not x.is_rounded}
    readers = [call for tensor in group for call in tensor.readers]
    return {
        0 if call is None else id(call.operation)
        for call in readers
        if call is None or id(call) not in joined
    }


def _can_be_followed(tensor: StoredTensor, graph: Graph) -> bool:
    """Returns whether a layer can quantize a tensor after it is made."""
    call = tensor.call
    is_float = keras.backend.is_float_dtype(tensor.tensor.dtype)
    if call is None:
        return is_float
    # The name of the model's output would change.
    names_output = graph.is_output(tensor.tensor) and "/" not in call.name
    is_layer = isinstance(call.operation, keras.layers.Layer)
    is_named = is_layer or not names_output
    return is_float and is_named and len(call.outputs) == 1
