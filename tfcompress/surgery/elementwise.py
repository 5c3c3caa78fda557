"""Functions that compute every element of a tensor on its own."""

import keras
import numpy as np
from keras import ops

# Names in `keras.activations` and `keras.ops`; those of operations are the same with
# capitals for underscores.
_NAMES = (
    "abs", "absolute", "cast", "ceil", "celu", "cos", "elu", "erf", "exp",
    "expm1", "exponential", "floor", "gelu", "hard_shrink", "hard_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu", "linear",
    "log", "log1p", "log_sigmoid", "mish", "negative", "relu", "relu6",
    "round", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "soft_shrink",
    "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sqrt", "square",
    "squareplus", "stop_gradient", "swish", "tanh", "tanh_shrink", "threshold",
)  # fmt: skip
OPERATIONS = {name.replace("_", "") for name in _NAMES}
_FUNCTIONS = {None} | {
    getattr(space, name)
    for space in (keras.activations, keras.ops)
    for name in _NAMES
    if hasattr(space, name)
}


def mixes_channels(activation):
    """Whether an activation is not known to compute each element on its own."""
    return activation not in _FUNCTIONS


def why_mixed(layer):
    """Why a layer's activation keeps channels from being removed, or ""."""
    activation = getattr(layer, "activation", None)
    if not mixes_channels(activation):
        return ""
    function = getattr(activation, "__name__", type(activation).__name__)
    return f"the activation {function} of '{layer.name}' may mix channels"


def keeps_zero(activation):
    """Whether an elementwise activation, or None for none, is zero at zero."""
    return activation is None or _is_zero(activation(ops.zeros((1, 1))))


def call_keeps_zero(call):
    """Whether an elementwise call is zero where all the tensors it reads are."""

    def zero(leaf):
        if keras.utils.is_keras_tensor(leaf):
            return ops.zeros((1,) * len(leaf.shape), leaf.dtype)
        return leaf

    args, kwargs = keras.tree.map_structure(zero, call.arguments)
    # Not through `__call__`, which would note losses.
    return _is_zero(call.operation.call(*args, **kwargs))


def _is_zero(values):
    return bool((ops.convert_to_numpy(values).astype(np.float64) == 0).all())
