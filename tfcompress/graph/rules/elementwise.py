"""Rules of operations that compute every element of a tensor on its own."""

import keras
import numpy as np
from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.trace import Trace, described
from tfcompress.layers import QuantizeActivation, RoundMeans
from tfcompress.layers.tensors.masking import AttachMask, DetachMask, ReadMask
from tfcompress.layers.tensors.sources import Constant, OwnWeight

# Names in `keras.activations` and `keras.ops`. The classes of operations have the same
# names, in capitals and without underscores.
_NAMES = (
    "abs", "absolute", "cast", "ceil", "celu", "cos", "elu", "erf", "exp",
    "expm1", "exponential", "floor", "gelu", "hard_shrink", "hard_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu", "linear",
    "log", "log1p", "log_sigmoid", "mish", "negative", "relu", "relu6",
    "round", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "soft_shrink",
    "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sqrt", "square",
    "squareplus", "stop_gradient", "swish", "tanh", "tanh_shrink", "threshold",
)  # fmt: skip
_FUNCTIONS = {None} | {
    getattr(space, name)
    for space in (keras.activations, keras.ops)
    for name in _NAMES
    if hasattr(space, name)
}


def why_mixed(layer: keras.layers.Layer) -> str:
    """Reason that a layer's activation freezes its channels, or "".

    An activation freezes unless it is known to compute each element on its own.
    """
    activation = getattr(layer, "activation", None)
    if activation in _FUNCTIONS:
        return ""
    function = getattr(activation, "__name__", type(activation).__name__)
    return f"the activation {function} of '{layer.name}' may mix channels"


def pass_through(trace: Trace, call: Call) -> None:
    """The output has the channels of the input, on the same axis."""
    trace.put(call, trace.space(call.inputs[0]))


def activation(trace: Trace, call: Call) -> None:
    reason = why_mixed(call.operation)
    if reason:
        trace.freeze_call(call, reason)
    else:
        pass_through(trace, call)


def dropout(trace: Trace, call: Call) -> None:
    shape = getattr(call.operation, "noise_shape", None)
    axis = trace.space(call.inputs[0]).axis
    if shape is not None and shape[axis] not in (None, 1):
        trace.freeze_call(call, f"'{call.name}' has a noise_shape with the channels")
    else:
        pass_through(trace, call)


def rescaling(trace: Trace, call: Call) -> None:
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        trace.freeze_call(call, f"'{call.name}' scales each channel differently")
    else:
        pass_through(trace, call)


def clip(trace: Trace, call: Call) -> None:
    if np.ndim(call.operation.x_min) or np.ndim(call.operation.x_max):
        trace.freeze_call(call, f"{described(call)} has a constant for each channel")
    else:
        pass_through(trace, call)


def unread(trace: Trace, call: Call) -> None:
    """No value of the input is read."""
    trace.put_frozen(call.outputs[0], f"made by {described(call)}", call.name)


_DROPOUT = (layers.AlphaDropout, layers.Dropout, layers.GaussianDropout)
_PASSING = (
    layers.ActivityRegularization, layers.ELU, layers.GaussianNoise, layers.Identity,
    layers.LeakyReLU, layers.ReLU, layers.SpatialDropout1D, layers.SpatialDropout2D,
    layers.SpatialDropout3D, AttachMask, DetachMask, QuantizeActivation,
    RoundMeans,
)  # fmt: skip
LAYERS = {
    layers.Activation: activation,
    layers.Rescaling: rescaling,
    Constant: unread,
    OwnWeight: unread,
    ReadMask: unread,
    **dict.fromkeys(_DROPOUT, dropout),
    **dict.fromkeys(_PASSING, pass_through),
}
OPERATIONS = {
    "clip": clip,
    **dict.fromkeys((name.replace("_", "") for name in _NAMES), pass_through),
}
