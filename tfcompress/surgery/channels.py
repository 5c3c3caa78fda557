"""Which layers read which channels, and which channels can be removed."""

import collections
import dataclasses

import keras
import numpy as np
from keras import layers

from tfcompress.layers import BopsBudget, FilterGate, QuantizeActivation

PRODUCERS = (layers.Conv1D, layers.Conv2D, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# Layers between a producer and its consumers that have weights per channel.
CARRIERS = (*DEPTHWISE, layers.BatchNormalization, layers.PReLU)

# Layers that leave every channel to itself, and at its place on the last axis. A
# layer that is to be in here may have weights, but none per channel. Exact
# classes: what a subclass computes is not known.
ELEMENTWISE_LAYERS = (
    layers.Activation,
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.ReLU,
    layers.Rescaling,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    BopsBudget,
    FilterGate,
    QuantizeActivation,
)
SPATIAL_LAYERS = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)

# Names in `keras.activations` and, with capitals for underscores, of operations.
_ELEMENTWISE = (
    "abs", "absolute", "celu", "elu", "exp", "exponential", "gelu", "hard_shrink",
    "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear", "log_sigmoid",
    "mish", "negative", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink",
    "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "square", "squareplus",
    "tanh", "tanh_shrink",
)  # fmt: skip
_ELEMENTWISE_OPERATIONS = {name.replace("_", "") for name in _ELEMENTWISE}
_ELEMENTWISE_FUNCTIONS = {None} | {
    getattr(space, name)
    for space in (keras.activations, keras.ops)
    for name in _ELEMENTWISE
    if hasattr(space, name)
}


@dataclasses.dataclass(frozen=True)
class ChannelSpace:
    """The output channels of one layer.

    Attributes:
        producer: name of the convolution or dense layer that makes them.
        channels: how many there are.
        consumers: names of the convolutions and dense layers that sum over them.
        carriers: names of the layers in between that have weights per channel:
            BatchNormalization, PReLU and depthwise convolutions.
        tied: why none of them can be removed, or "". Consumers and carriers of
            tied channels are listed as far as the channels can be followed.
    """

    producer: str
    channels: int
    consumers: tuple
    carriers: tuple
    tied: str


@dataclasses.dataclass(frozen=True)
class InputSpace:
    """The channels that a layer reads.

    Attributes:
        producer: name of the layer that makes them, removable or tied.
        channel_of: int array, for every index of the last axis of the reader's
            input the producer's channel there. It counts up from 0, but behind
            Flatten and depthwise convolutions with a multiplier.
    """

    producer: str
    channel_of: np.ndarray


def channel_spaces(graph):
    """The output channels of every Conv1D, Conv2D and Dense layer.

    Channels are followed on the last axis through elementwise layers and
    activations, pooling, padding, upsampling, Flatten, batch normalization and
    depthwise convolutions, across the borders of nested models. Anything else
    ties them: merging with other tensors, softmax, operations that are not known
    here, layers that are called more than once, channels_first, and being
    returned by the model.

    Args:
        graph: a `tfcompress.surgery.graph.Graph`.

    Returns:
        `{name: ChannelSpace}` in running order.
    """
    trace = _Trace(graph)
    return {
        name: ChannelSpace(
            producer=name,
            channels=getattr(layer, width_argument(layer)),
            consumers=tuple(trace.readers_of(name, PRODUCERS)),
            carriers=tuple(trace.readers_of(name, CARRIERS)),
            tied=trace.tied.get(name, ""),
        )
        for name, layer in graph.layers().items()
        if isinstance(layer, PRODUCERS)
    }


def input_spaces(graph):
    """Whose channels the convolutions, dense layers and carriers read.

    Args:
        graph: a `tfcompress.surgery.graph.Graph`.

    Returns:
        `{name: InputSpace}` in running order. It lacks the layers that read
        anything else: the model's input, several producers' channels mixed, or
        different tensors in several calls.
    """
    return _Trace(graph).inputs


def width_argument(layer):
    """The argument of a convolution or dense layer that sets its output channels."""
    return "units" if isinstance(layer, layers.Dense) else "filters"


class _Trace:
    """One walk along the calls, with the origin of each tensor's channels.

    Attributes:
        inputs: `{reader's name: InputSpace}`, of layers that are called once.
        tied: `{producer's name: the first reason}`.
    """

    def __init__(self, graph):
        self.inputs = {}
        self.tied = {}
        self._layers = graph.layers()
        self._names = {id(layer): name for name, layer in self._layers.items()}
        self._readers = {}
        self._times = collections.Counter(id(call.operation) for call in graph.calls)
        # By a tensor's id: its InputSpace, and the nested model it was made in.
        self._spaces = {}
        self._scopes = {}
        for call in graph.calls:
            self._follow(call)
        for output in graph.outputs:
            self._tie([output], "the model returns them")

    def readers_of(self, producer, classes):
        """Names of the layers of some classes that read a producer's channels."""
        names = self._readers.get(producer, {})
        return [name for name in names if isinstance(self._layers[name], classes)]

    def _follow(self, call):
        operation = call.operation
        reason = self._why_tied(call)
        if reason:
            self._tie(call.inputs, reason)
        if isinstance(operation, (*PRODUCERS, *CARRIERS)):
            self._note_reader(call)
        if isinstance(operation, PRODUCERS):
            self._start(call)
        elif not reason and id(call.inputs[0]) in self._spaces:
            self._carry_on(call)

    def _tie(self, tensors, reason):
        for tensor in tensors:
            if id(tensor) in self._spaces:
                self.tied.setdefault(self._spaces[id(tensor)].producer, reason)

    def _note_reader(self, call):
        name = self._names[id(call.operation)]
        space = self._spaces.get(id(call.inputs[0]))
        if space is None:
            return
        self._readers.setdefault(space.producer, {})[name] = None
        if self._times[id(call.operation)] == 1:
            self.inputs[name] = space

    def _start(self, call):
        """New channels: the outputs of a convolution or dense layer."""
        layer, (output,) = call.operation, call.outputs
        name = self._names[id(layer)]
        channels = np.arange(getattr(layer, width_argument(layer)))
        self._put(call, InputSpace(name, channels))
        own_reason = _why_unfit(layer, self._times[id(layer)]) or _why_mixed(layer)
        if own_reason:
            self._tie([output], own_reason)

    def _carry_on(self, call):
        """The input's channels on the output, where they may lie differently."""
        operation, space = call.operation, self._spaces[id(call.inputs[0])]
        channel_of = space.channel_of
        if isinstance(operation, layers.Flatten):
            positions = call.outputs[0].shape[-1] // len(channel_of)
            channel_of = np.tile(channel_of, positions)
        elif isinstance(operation, DEPTHWISE):
            channel_of = np.repeat(channel_of, operation.depth_multiplier)
        self._put(call, InputSpace(space.producer, channel_of))

    def _put(self, call, space):
        (output,) = call.outputs
        self._spaces[id(output)] = space
        self._scopes[id(output)] = call.name.rpartition("/")[0]

    def _why_tied(self, call):
        """Why a call keeps its inputs' channels from being removed, or ""."""
        operation = call.operation
        if len(call.inputs) != 1 or len(call.outputs) != 1:
            return f"merged with others by {_described(call)}"
        if not _is_known(operation):
            return f"read by {_described(call)}"
        scope = call.name.rpartition("/")[0]
        if not _is_inside(self._scopes.get(id(call.inputs[0]), scope), scope):
            return f"read inside the nested model '{scope}', whose input shape is fixed"
        reason = _why_unfit(operation, self._times[id(operation)])
        if reason or isinstance(operation, PRODUCERS):
            return reason
        return _why_mixed(operation) or _why_misplaced(call)


def _is_known(operation):
    """Whether this module knows what becomes of the channels that are read."""
    kind = type(operation)
    # A convolution that somebody derived may do anything with its weights.
    ours = kind.__module__.partition(".")[0] in ("keras", "tfcompress")
    if not isinstance(operation, layers.Layer):
        return ours and kind.__name__.lower() in _ELEMENTWISE_OPERATIONS
    if kind in (*ELEMENTWISE_LAYERS, *SPATIAL_LAYERS, layers.Flatten):
        return True
    return ours and isinstance(operation, (*PRODUCERS, *CARRIERS))


def _why_unfit(operation, times):
    """Why neither what an operation reads nor what it makes can change, or ""."""
    name = operation.name
    # A gate stands in front of each reader of one layer's filters.
    if times > 1 and not isinstance(operation, FilterGate):
        return f"'{name}' is called {times} times"
    if not _is_known(operation):
        return f"'{name}' is a {type(operation).__name__}, which is not known"
    if getattr(operation, "groups", 1) > 1:
        return f"'{name}' has groups"
    if getattr(operation, "data_format", None) == "channels_first":
        return f"'{name}' is channels_first"
    if getattr(operation, "lora_enabled", False):
        return f"'{name}' has LoRA weights"
    if getattr(operation, "quantization_mode", None):
        return f"'{name}' is quantized by Keras"
    return ""


def _why_mixed(layer):
    """Why a layer's own activation or scaling treats channels differently, or ""."""
    activation = getattr(layer, "activation", None)
    if activation not in _ELEMENTWISE_FUNCTIONS:
        function = getattr(activation, "__name__", type(activation).__name__)
        return f"the activation {function} of '{layer.name}' may mix channels"
    if np.ndim(getattr(layer, "scale", 0)) or np.ndim(getattr(layer, "offset", 0)):
        return f"'{layer.name}' scales each channel differently"
    if getattr(layer, "noise_shape", None) is not None:
        return f"'{layer.name}' has a noise_shape"
    return ""


def _why_misplaced(call):
    """Why channels are not where they are expected, on the last axis, or ""."""
    operation, shape = call.operation, call.inputs[0].shape
    if isinstance(operation, layers.BatchNormalization):
        axis = operation.axis % len(shape)
        if axis != len(shape) - 1:
            return f"'{operation.name}' normalises axis {axis}"
    if isinstance(operation, layers.Flatten) and None in shape[1:]:
        return f"'{operation.name}' flattens open sizes {tuple(shape[1:])}"
    return ""


def _is_inside(scope, outer):
    """Whether a nested model "a/b" lies in, or is, another, "a"; "" is outermost."""
    return not outer or f"{scope}/".startswith(f"{outer}/")


def _described(call):
    return f"'{call.name}' ({type(call.operation).__name__})"
