"""Functions that compute every element of a tensor on its own."""

import keras

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
