"""Tensors of a graph that a file with int8 activations stores, and who reads them."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.compat import keras_private
from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.signs import may_be_negative
from tfcompress.graph.union_find import UnionFind
from tfcompress.layers import QuantizeActivation, QuantizedTensor
from tfcompress.layers.kernel import channel_axis
from tfcompress.layers.registry import forms_of

# The values of the result are some of the input's, or zero: levels stay levels.
_PASSING = (
    layers.ActivityRegularization, layers.AlphaDropout, layers.Cropping1D,
    layers.Cropping2D, layers.Dropout, layers.Flatten, layers.GaussianDropout,
    layers.GaussianNoise, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D,
    layers.Identity, layers.MaxPooling1D, layers.MaxPooling2D, layers.Permute,
    layers.RepeatVector, layers.Reshape, layers.SpatialDropout1D,
    layers.SpatialDropout2D, layers.UpSampling1D, layers.UpSampling2D,
    layers.ZeroPadding1D, layers.ZeroPadding2D,
)  # fmt: skip
_PASSING_OPERATIONS = {
    "ExpandDims", "GetItem", "Moveaxis", "Reshape", "Split", "Squeeze", "Swapaxes",
    "Transpose",
}  # fmt: skip
# Means and interpolations, which int8 operators compute in the scale of the input.
AVERAGE_POOLS = (layers.AveragePooling1D, layers.AveragePooling2D)
_AVERAGING = (*AVERAGE_POOLS, layers.UpSampling2D)
# Int8 operators that need one scale for all inputs and the result.
_JOINING = (layers.Concatenate, layers.Maximum)
_JOINING_OPERATIONS = {"Concatenate", "Maximum"}
# Operators that a ReLU after them becomes a part of.
_SUMS = (layers.Add, layers.BatchNormalization, layers.Multiply, layers.Subtract)
_SUM_OPERATIONS = {"Add", "Multiply", "Subtract"}
_FUSED_ACTIVATIONS = (
    None,
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
)
# Activations with results in a scale that int8 operators prescribe, and the scale.
FIXED_STEPS = {"sigmoid": 1 / 256, "softmax": 1 / 256, "tanh": 1 / 128}
_FIXED = {getattr(keras.activations, name): step for name, step in FIXED_STEPS.items()}


@dataclasses.dataclass(eq=False)
class StoredTensor:
    """Tensor that an operator of the file writes.

    Attributes:
        call: `Call` whose result it is: the last of those that one operator computes.
            None for an input of the model.
        tensor: `KerasTensor`, the result.
        scale: int. Tensors of the same number have one scale.
        signed: bool. Whether it may be negative.
        is_rounded: bool. Whether the operator rounds. Results of a concatenation are
            not rounded where its inputs are.
        fixed_step: float or None. Scale that the operator prescribes.
        takes_relu: bool. Whether the operator computes a ReLU after it as well.
        readers: list of `Call`, and of None for the model's output. Calls that read it,
            also after operations that pass levels on.
    """

    call: Call | None
    tensor: keras.KerasTensor
    scale: int
    signed: bool = True
    is_rounded: bool = True
    fixed_step: float | None = None
    takes_relu: bool = False
    readers: list[Call | None] = dataclasses.field(default_factory=list)


class StoredTensors:
    """All `StoredTensor`s of a graph.

    LiteRT computes a layer, the batch normalization that is folded into it and the
    ReLU after it as one operator. The tensors between them are not stored.

    Attributes:
        all: list of `StoredTensor`, in running order.

    Args:
        graph: `Graph` of the model, with plain or training layers.
    """

    def __init__(self, graph: Graph) -> None:
        self.all: list[StoredTensor] = []
        self._graph = graph
        self._by_tensor: dict[int, StoredTensor] = {}
        self._scales = UnionFind()
        self._negative = may_be_negative(graph)
        for tensor in graph.inputs:
            self._store(None, tensor)
        for call in graph.calls:
            if not isinstance(call.operation, layers.InputLayer):
                self._add(call)
        for tensor in graph.outputs:
            self.of(tensor).readers.append(None)
        numbers = self._scales.classes()
        for stored in self.all:
            stored.scale = int(numbers[stored.scale])

    def of(self, tensor: keras.KerasTensor) -> StoredTensor:
        """Returns the stored tensor whose values, or some of them, a tensor has."""
        return self._by_tensor[id(tensor)]

    def _store(self, call, tensor):
        (scale,) = self._scales.new(1)
        stored = StoredTensor(call, tensor, scale, self._negative(tensor))
        self.all.append(stored)
        self._by_tensor[id(tensor)] = stored
        return stored

    def _add(self, call):
        inputs = [self.of(x) for x in call.inputs]
        if len(inputs) == 1 and passes_levels(call.operation):
            for tensor in call.outputs:
                self._by_tensor[id(tensor)] = inputs[0]
            return
        if len(inputs) == 1 and self._is_fused(call, inputs[0]):
            self._extend(inputs[0], call)
            return
        for stored in inputs:
            stored.readers.append(call)
        results = [self._store(call, tensor) for tensor in call.outputs]
        for result in results:
            result.fixed_step = _fixed_step(call.operation)
            result.takes_relu = _takes_relu(call.operation)
        if len(results) == 1 and len(inputs) > 0:
            self._tie(call.operation, inputs, results[0])

    def _tie(self, operation, inputs, result):
        """Gives the tensors of an operation one scale where int8 needs that."""
        averages = _is_any(operation, _AVERAGING)
        joins = _is_any(operation, _JOINING, _JOINING_OPERATIONS)
        if not (averages or joins):
            return
        of_any_scale = [x for x in inputs if x.fixed_step is None]
        for stored in of_any_scale:
            self._scales.unite(np.array([stored.scale]), np.array([result.scale]))
        result.is_rounded = averages or len(of_any_scale) < len(inputs)

    def _is_fused(self, call, stored):
        """Whether the operator that writes a tensor computes the next call as well."""
        (tensor,) = call.inputs
        is_read_elsewhere = len(
            self._graph.consumers(tensor)
        ) > 1 or self._graph.is_output(tensor)
        if stored.tensor is not tensor or stored.call is None or is_read_elsewhere:
            return False
        if isinstance(call.operation, layers.BatchNormalization):
            return _folds(stored.call.operation, call)
        return stored.takes_relu and is_relu(call.operation)

    def _extend(self, stored, call):
        (tensor,) = call.outputs
        stored.call, stored.tensor = call, tensor
        stored.signed = self._negative(tensor)
        stored.takes_relu = _takes_relu(call.operation)
        self._by_tensor[id(tensor)] = stored


def maker_of(stored: StoredTensor) -> tuple[keras.Operation, int]:
    """Returns the operation that makes a tensor, and the number of its call."""
    if stored.call is None:
        return keras_private.maker_of(stored.tensor), 0
    return stored.call.operation, stored.call.number


def passes_levels(operation: Any) -> bool:
    """Returns whether the results of an operation are some of its input's values.

    Args:
        operation: layer or operation with one input.
    """
    if getattr(operation, "interpolation", "nearest") != "nearest":
        return False
    return _is_any(operation, _PASSING, _PASSING_OPERATIONS)


def levels_of_tensors(graph: Graph) -> dict[int, Any]:
    """Returns which layer rounded the tensors of a student or a finalized model.

    Args:
        graph: `Graph` of the model.

    Returns:
        `{tensor's id: QuantizedTensor or QuantizeActivation}`, also of tensors that
        pass on the levels of others.
    """
    found: dict[int, Any] = {}
    for call in graph.calls:
        operation = call.operation
        sources = [found.get(id(tensor)) for tensor in call.inputs]
        is_passed = len(sources) == 1 and passes_levels(operation)
        is_joined = _is_any(operation, _JOINING, _JOINING_OPERATIONS)
        source = None
        if isinstance(operation, (QuantizedTensor, QuantizeActivation)):
            source = operation
        elif (is_passed or is_joined) and len({id(x) for x in sources}) == 1:
            source = sources[0]
        if source is not None:
            found.update((id(tensor), source) for tensor in call.outputs)
    return found


def has_inner_tensor(layer: keras.layers.Layer) -> bool:
    """Returns whether a file stores the sums of a layer before its activation.

    Args:
        layer: convolution or dense layer.
    """
    return _activation(layer) not in _FUSED_ACTIVATIONS


def _multiplies(operation):
    """Whether a layer multiplies by a kernel, adds a bias and then activates."""
    forms = forms_of(operation)
    return forms is not None and forms.is_linear and forms.own is None


def _activation(layer):
    return layer.activation if _multiplies(layer) else keras.activations.linear


def _is_any(operation, kinds, names=()):
    if isinstance(operation, layers.Layer):
        return type(operation) in kinds
    is_of_keras = type(operation).__module__.partition(".")[0] == "keras"
    return is_of_keras and type(operation).__name__ in names


def is_relu(operation: Any) -> bool:
    """Returns whether an operation is a ReLU that an operator before it computes.

    Args:
        operation: layer or operation.
    """
    if type(operation) is layers.ReLU or type(operation).__name__ == "ReLU":
        has_slope = operation.negative_slope or operation.threshold
        return operation.max_value in (None, 6) and not has_slope
    if isinstance(operation, layers.Activation):
        return operation.activation in _FUSED_ACTIVATIONS[2:]
    return _is_any(operation, (), ("Relu", "Relu6"))


def _folds(maker, call):
    """Whether the converter folds a batch normalization into the layer before it."""
    if not _multiplies(maker) or maker.activation not in _FUSED_ACTIVATIONS[:2]:
        return False
    ndim, axis = len(call.inputs[0].shape), call.operation.axis
    is_of_batch = call.arguments[1].get("training")
    return axis % ndim == channel_axis(maker) % ndim and not is_of_batch


def _takes_relu(operation):
    if forms_of(operation) is not None:
        return _multiplies(operation) and operation.activation in _FUSED_ACTIVATIONS[:2]
    return _is_any(operation, _SUMS, _SUM_OPERATIONS)


def _fixed_step(operation):
    if isinstance(operation, layers.Softmax):
        return FIXED_STEPS["softmax"]
    if isinstance(operation, layers.Activation) or _multiplies(operation):
        return _FIXED.get(operation.activation)
    if isinstance(operation, layers.Layer):
        return None
    return FIXED_STEPS.get(type(operation).__name__.lower())
