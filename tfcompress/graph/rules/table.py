"""The rule of every operation: what it does with channels."""

import keras
import numpy as np
from keras import layers

from tfcompress.graph.rules import elementwise, layout, weights
from tfcompress.graph.trace import Space, described
from tfcompress.layers import QuantizeActivation, TrainingForm
from tfcompress.layers.kernel import channel_axis


def rule_of(call):
    """The rule of a call: a function of a `Trace` and the call; None if unknown.

    Classes are taken exactly: what a subclass computes is not known, but for those
    of this package, which change weights and not channels.
    """
    operation, kind = call.operation, type(call.operation)
    if isinstance(operation, TrainingForm) and operation.passes_channels:
        return passing
    origin = kind.__module__.partition(".")[0]
    if isinstance(operation, layers.Layer):
        kinds = kind.__mro__ if origin == "tfcompress" else (kind,)
        found = [k for k in kinds if k in LAYERS]
        rule = LAYERS[found[0]] if found else None
    elif origin == "keras":
        rule = OPERATIONS.get(kind.__name__.lower())
    else:
        rule = None
    if rule is None or (len(call.inputs) != 1 and rule not in _MERGES):
        return None
    return _checked(rule) if isinstance(operation, layers.Layer) else rule


def passing(trace, call):
    """The channels stay what and where they are."""
    trace.put(call, trace.space(call.inputs[0]))


def activation(trace, call):
    reason = elementwise.why_mixed(call.operation)
    if reason:
        trace.freeze_call(call, reason)
    else:
        passing(trace, call)


def dropout(trace, call):
    shape = getattr(call.operation, "noise_shape", None)
    axis = trace.space(call.inputs[0]).axis
    if shape is not None and shape[axis] not in (None, 1):
        trace.freeze_call(call, f"'{call.name}' has a noise_shape with the channels")
    else:
        passing(trace, call)


def rescaling(trace, call):
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        trace.freeze_call(call, f"'{call.name}' scales each channel differently")
    else:
        passing(trace, call)


def clip(trace, call):
    if np.ndim(call.operation.x_min) or np.ndim(call.operation.x_max):
        trace.freeze_call(call, f"{described(call)} has a constant for each channel")
    else:
        passing(trace, call)


def spatial(trace, call):
    """Pooling, padding, cropping, resizing: each channel on its own."""
    trace.put(call, trace.read(call, channel_axis(call.operation)))


def global_pooling(trace, call):
    space = trace.read(call, channel_axis(call.operation))
    axis = space.axis if call.operation.keepdims else 1
    trace.put(call, Space(axis, space.ids))


def merge(trace, call):
    """Sums, products, ... of tensors that have the channels, or broadcast to them."""
    ndim = len(call.outputs[0].shape)
    constants = [
        leaf
        for leaf in keras.tree.flatten(call.arguments)
        if leaf is not None and not keras.utils.is_keras_tensor(leaf)
    ]
    # Shapes are aligned at their ends.
    spaces = [trace.space(tensor) for tensor in call.inputs]
    places = [
        space.axis - len(tensor.shape) + ndim
        for tensor, space in zip(call.inputs, spaces, strict=True)
    ]
    wide = [i for i, space in enumerate(spaces) if len(space.ids) != 1]
    wide = wide or list(range(len(spaces)))
    axis = places[wide[0]]
    others = [call.inputs[i] for i in range(len(spaces)) if i not in wide]
    sizes = [_size(constant, axis - ndim) for constant in constants]
    if any(size != 1 for size in sizes):
        trace.freeze_call(call, f"{described(call)} has a constant for each channel")
        return
    if (
        any(places[i] != axis for i in wide)
        or len({len(spaces[i].ids) for i in wide}) > 1
        or any(_size(tensor, axis - ndim) != 1 for tensor in others)
    ):
        trace.freeze_call(call)
        return
    for tensor in others:
        trace.freeze(trace.space(tensor).ids, f"{described(call)} broadcasts it")
    operands = [spaces[i] for i in wide]
    trace.unite(call, [space.ids for space in operands])
    trace.put(call, Space(axis, operands[0].ids))


def normalises(trace, call):
    trace.freeze_call(call, f"{described(call)} normalises over the channels")


def attends(trace, call):
    trace.freeze_call(call, f"{described(call)} splits the channels into heads")


def recurs(trace, call):
    trace.freeze_call(call, f"{described(call)} feeds its channels back to itself")


_PASSING = (
    layers.ActivityRegularization, layers.GaussianNoise, layers.Identity,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    QuantizeActivation,
)  # fmt: skip
_DROPOUT = (layers.AlphaDropout, layers.Dropout, layers.GaussianDropout)
_ELEMENTWISE = (layers.ELU, layers.LeakyReLU, layers.ReLU)
_SPATIAL = (
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.Resizing,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
)  # fmt: skip
_GLOBAL_POOLING = (
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
)  # fmt: skip
_MERGING = (
    layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply,
    layers.Subtract,
)  # fmt: skip
_NORMALISING = (
    layers.LayerNormalization, layers.RMSNormalization, layers.Softmax,
    layers.UnitNormalization,
)  # fmt: skip
_ATTENDING = (
    layers.AdditiveAttention, layers.Attention, layers.GroupQueryAttention,
    layers.MultiHeadAttention,
)  # fmt: skip
_RECURRENT = (
    layers.Bidirectional, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D,
    layers.GRU, layers.LSTM, layers.RNN, layers.SimpleRNN, layers.TimeDistributed,
)  # fmt: skip

LAYERS = {
    layers.Activation: activation,
    layers.Rescaling: rescaling,
    layers.Concatenate: layout.concatenate,
    **dict.fromkeys(_PASSING, passing),
    **dict.fromkeys(_DROPOUT, dropout),
    **dict.fromkeys(_ELEMENTWISE, passing),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_GLOBAL_POOLING, global_pooling),
    **dict.fromkeys(_MERGING, merge),
    **dict.fromkeys(_NORMALISING, normalises),
    **dict.fromkeys(_ATTENDING, attends),
    **dict.fromkeys(_RECURRENT, recurs),
    **layout.LAYERS,
    **weights.RULES,
}
_MERGING_OPERATIONS = (
    "add", "divide", "maximum", "minimum", "multiply", "power", "subtract",
    "truedivide",
)  # fmt: skip
# By the classes' names in small letters.
OPERATIONS = {
    "clip": clip,
    "concatenate": layout.concatenate,
    "softmax": normalises,
    "logsoftmax": normalises,
    **dict.fromkeys(elementwise.OPERATIONS, passing),
    **dict.fromkeys(_MERGING_OPERATIONS, merge),
    **layout.OPERATIONS,
}
_MERGES = (merge, layout.concatenate, attends, recurs)


def _checked(rule):
    """The rule, for layers whose weights are those that the rule knows."""

    def checked(trace, call):
        if getattr(call.operation, "lora_enabled", False):
            trace.freeze_call(call, f"'{call.name}' has LoRA weights")
        elif getattr(call.operation, "quantization_mode", None):
            trace.freeze_call(call, f"'{call.name}' is quantized by Keras")
        else:
            rule(trace, call)

    return checked


def _size(value, axis):
    """Size of a tensor or constant along an axis counted from the end, or one."""
    shape = tuple(getattr(value, "shape", np.shape(value)))
    return shape[axis] if -axis <= len(shape) else 1
