"""Masks of the steps of sequences, which Keras attaches to tensors."""

import inspect
from typing import Any

import keras
from keras import layers

from tfcompress.graph.graph import Call, Graph


class Masks:
    """Masks that the tensors of a graph carry when the model runs.

    They are followed through nested models, whose borders hide them from symbolic
    tensors. Where a layer may or may not make a mask, it counts as a mask of its own.

    Args:
        graph: `tfcompress.graph.Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self._of: dict[int, Any] = {}
        for call in graph.calls:
            mask = self._made_by(call)
            if mask is not None:
                self._of.update((id(tensor), mask) for tensor in call.outputs)

    def of(self, tensor: keras.KerasTensor) -> Any:
        """Returns the mask of a tensor, or None. Equal masks are equal objects."""
        return self._of.get(id(tensor))

    def merged(self, tensors: list[keras.KerasTensor]) -> Any:
        """Returns the mask that `Add` makes of tensors: None unless all have one."""
        found = {self.of(tensor) for tensor in tensors}
        if None in found:
            return None
        return found.pop() if len(found) == 1 else frozenset(found)

    def reads(self, call: Call) -> bool:
        """Returns whether masks of its inputs change the outputs of a call."""
        if isinstance(call.operation, layers.BatchNormalization):
            return False  # in training alone
        takes = inspect.signature(call.operation.call).parameters
        return any(name.endswith("mask") for name in takes) and any(
            self.of(tensor) is not None for tensor in call.inputs
        )

    def _made_by(self, call):
        layer = call.operation
        if not isinstance(layer, layers.Layer) or not layer.supports_masking:
            return None
        if isinstance(layer, layers.Add):
            return self.merged(call.inputs)
        # An argument `mask`, which Keras records in a call, is among the inputs.
        before = [mask for x in call.inputs if (mask := self.of(x)) is not None]
        if type(layer).compute_mask is layers.Layer.compute_mask:
            return before[0] if before else None
        return id(call) if before or _starts_mask(layer) else None


def _starts_mask(layer):
    """Whether a layer may attach a mask to outputs of inputs without one."""
    if isinstance(layer, layers.Embedding):
        return layer.mask_zero
    known = type(layer).__module__.partition(".")[0] in ("keras", "tfcompress")
    return isinstance(layer, layers.Masking) or not known
