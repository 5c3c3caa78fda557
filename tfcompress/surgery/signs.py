"""Which tensors of a graph can be negative."""

import keras
from keras import layers

_ACTIVATIONS = {
    getattr(keras.activations, name)
    for name in ("relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus")
}
_RECTIFIERS = (layers.Softmax,)
_RECTIFYING_OPERATIONS = {
    "Relu", "Relu6", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Absolute",
    "Square",
}  # fmt: skip
# Non-negative where all of their inputs are.
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
)
_KEEPING_OPERATIONS = {"Add", "Concatenate", "Maximum", "Mean", "Multiply", "Reshape"}


def may_be_negative(graph):
    """Function from a tensor of the graph to whether it can have negative values.

    True for the model's inputs and behind anything that is not known to rectify or
    to keep signs.

    Args:
        graph: a `tfcompress.surgery.graph.Graph`.
    """
    nonnegative = set()
    for call in graph.calls:
        known = call.inputs and all(id(x) in nonnegative for x in call.inputs)
        if _rectifies(call.operation) or (known and _keeps(call.operation)):
            nonnegative.update(id(x) for x in call.outputs)
    return lambda tensor: id(tensor) not in nonnegative


def _rectifies(operation):
    if isinstance(operation, layers.ReLU):
        return not operation.negative_slope
    if isinstance(operation, _RECTIFIERS):
        return True
    if isinstance(operation, keras.layers.Layer):
        return getattr(operation, "activation", None) in _ACTIVATIONS
    return type(operation).__name__ in _RECTIFYING_OPERATIONS


def _keeps(operation):
    if isinstance(operation, keras.layers.Layer):
        return type(operation) in _KEEPING
    return type(operation).__name__ in _KEEPING_OPERATIONS
