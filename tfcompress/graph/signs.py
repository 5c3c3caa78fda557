"""Signs of the tensors of a graph."""

from collections.abc import Callable

import keras
from keras import layers

from tfcompress.graph.graph import Graph
from tfcompress.layers.tensors.masking import AttachMask, DetachMask
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps

NON_NEGATIVE_ACTIVATIONS = (
    "relu",
    "relu6",
    "sigmoid",
    "hard_sigmoid",
    "softmax",
    "softplus",
)
_ACTIVATIONS = {getattr(keras.activations, name) for name in NON_NEGATIVE_ACTIVATIONS}
_RECTIFYING_OPERATIONS = {
    "Relu", "Relu6", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Absolute",
    "Square",
}  # fmt: skip
# Non-negative if all of their inputs are.
_KEEPING = (
    layers.Add,
    layers.Average,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Dropout,
    layers.Flatten,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.Maximum,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Minimum,
    layers.Multiply,
    layers.Permute,
    layers.Reshape,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    AttachMask,
    DetachMask,
    MergeSteps,
    SplitSteps,
)
# Their other inputs are masks, or only have a shape that is read.
_OF_FIRST_INPUT = (AttachMask, SplitSteps)
_KEEPING_OPERATIONS = {"Maximum", "Mean", "Reshape"}
# Non-negative if both operands are non-negative tensors; constants may be negative.
_KEEPING_MERGES = {"Add", "Concatenate", "Multiply"}


def may_be_negative(graph: Graph) -> Callable[[keras.KerasTensor], bool]:
    """Returns a function from a tensor to whether it can have negative values.

    It can if it is an input of the model, or if the operation that makes it is not
    known to rectify or to keep signs.

    Args:
        graph: `tfcompress.graph.Graph` of the tensors.
    """
    nonnegative: set[int] = set()
    for call in graph.calls:
        ends = 1 if isinstance(call.operation, _OF_FIRST_INPUT) else None
        inputs = call.inputs[:ends]
        known = inputs and all(id(x) in nonnegative for x in inputs)
        if _rectifies(call.operation) or (known and _keeps(call)):
            nonnegative.update(id(x) for x in call.outputs)
    return lambda tensor: id(tensor) not in nonnegative


def _rectifies(operation):
    kind = type(operation)
    # Layers of other packages may compute more after their activation.
    if kind.__module__.partition(".")[0] not in ("keras", "tfcompress"):
        return False
    if kind.__name__ == "ReLU":  # the layer and the operation of `activations.relu`
        return not operation.negative_slope and operation.threshold >= 0
    if isinstance(operation, layers.Softmax):
        return True
    if isinstance(operation, layers.Layer):
        return getattr(operation, "activation", None) in _ACTIVATIONS
    return kind.__name__ in _RECTIFYING_OPERATIONS


def _keeps(call):
    kind = type(call.operation)
    if not isinstance(call.operation, layers.Layer):
        merges = kind.__name__ in _KEEPING_MERGES and len(call.inputs) > 1
        return merges or kind.__name__ in _KEEPING_OPERATIONS
    # Interpolation of higher order overshoots.
    interpolation = getattr(call.operation, "interpolation", "nearest")
    return kind in _KEEPING and interpolation in ("nearest", "bilinear")
