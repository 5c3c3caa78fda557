"""Kernels that a model plans to have in the file, and their recognition."""

from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import ops

from tfcompress.compat.litert_private import schema
from tfcompress.graph.graph import Graph
from tfcompress.layers import PackedKernel, TrainingForm
from tfcompress.layers.kernel import by_channel
from tfcompress.litert import flatbuffer
from tfcompress.quantizers.packing import pack

# Bits of the containers of codes.
CONTAINERS = (2, 4, 8)
# Operators that read the kernels of packed layers as their second input, and the bits
# of the containers that they read themselves, correctly and with one scale per output
# channel. LiteRT 2.3.0: INT4 convolutions take as long as float ones, and INT2 ones
# return NaN. `lowering/operator_costs.json` says how long the others take.
NATIVE_BITS = {
    "CONV_2D": (8,),
    "DEPTHWISE_CONV_2D": (8,),
    "FULLY_CONNECTED": (2, 4, 8),
}
# The operator that reads tables, as its first input.
GATHER = "GATHER"
# Operators that read such kernels as floats, if their other inputs are floats.
DECODED = ("TRANSPOSE_CONV", "CONV_3D")
# Places of the data and of the bias among the inputs of operators that compute with
# integers throughout. The kernel is the second input of each.
DATA_AND_BIAS = {
    "CONV_2D": (0, 2),
    "DEPTHWISE_CONV_2D": (0, 2),
    "FULLY_CONNECTED": (0, 2),
    "TRANSPOSE_CONV": (2, 3),
}
# The version of DEQUANTIZE with per-channel scales and types of less than a byte.
DEQUANTIZE_VERSION = 6
# Largest relative difference of equal values. Folding a factor into `codes * scale`
# rounds a few times by 6e-8; neighboring codes differ by 8e-3 at least.
ROUNDING = 1e-6
# Weights of each channel that rule most other kernels of the same shape out.
FIRST_WEIGHTS = 8


@dataclass(frozen=True)
class Kernel:
    """Kernel that a packed layer plans to have in the file.

    Attributes:
        layer: str. Name of the layer; "outer/inner" inside nested models.
        codes: int8 array, (weights per output channel, output channels).
        scale: float32 array, (output channels,). Positive scales.
        bits: int. Bits of a code in its container: 2, 4 or 8.
    """

    layer: str
    codes: np.ndarray
    scale: np.ndarray
    bits: int


@dataclass(frozen=True)
class Match:
    """Constant of the file, expressed by the codes of a kernel.

    Attributes:
        kernel: `Kernel`.
        axis: int. The constant's axis of output channels.
        codes: int8 array of the constant's shape. The kernel's codes, negated where
            the converter folded in a negative factor, and zero where it folded in a
            zero.
        scale: float32 array, (output channels,). Positive scales.
        folded: bool. Whether `scale` differs from the kernel's own.
    """

    kernel: Kernel
    axis: int
    codes: np.ndarray
    scale: np.ndarray
    folded: bool

    def in_container(self, bits: int, as_matrix: bool = False) -> "Match":
        """Returns the same codes and scales in another container.

        Args:
            bits: int. Bits of the container, which has to hold the codes.
            as_matrix: bool. Whether the codes get the shape (output channels, weights
                per channel) of FULLY_CONNECTED, which a kernel with output channels on
                another axis than the first cannot have.
        """
        codes = self.codes
        if as_matrix:
            codes = codes.reshape(len(codes), -1)
        return replace(self, kernel=replace(self.kernel, bits=bits), codes=codes)

    def bits_of_codes(self) -> int:
        """Returns the bits of the smallest container that holds the codes."""
        least, most = int(self.codes.min()), int(self.codes.max())
        return next(
            bits
            for bits in CONTAINERS
            if -(2 ** (bits - 1)) <= least and most < 2 ** (bits - 1)
        )


def packed_kernels(model: keras.Model) -> list[Kernel]:
    """Returns the `Kernel` of each packed layer of a model, in the order of calls.

    Raises:
        ValueError: if the model has layers that are still in training, layers with
            `stateful=True`, or no graph.
    """
    layers = Graph(model).layers()
    training = [n for n, layer in layers.items() if isinstance(layer, TrainingForm)]
    if training:
        raise ValueError(
            "A model of packed or plain layers is expected, as `tfcompress.finalize` "
            f"makes it. Received: '{model.name}' with {len(training)} layers that are "
            f"still in training, the first '{training[0]}'. Call "
            "`tfcompress.finalize` on the trained student, and export its result."
        )
    stateful = [n for n, x in layers.items() if getattr(x, "stateful", False)]
    if stateful:
        raise ValueError(
            "A model whose calls do not depend on earlier ones is expected: a file "
            f"keeps no states. Received: '{stateful[0]}' with stateful=True. Take "
            "`return_state=True` and `initial_state`, with the states as inputs and "
            "outputs of the model."
        )
    return [
        kernel
        for name, layer in layers.items()
        if isinstance(layer, PackedKernel)
        for kernel in _kernels(name, layer)
    ]


def _kernels(name, layer):
    """Kernels of a layer: one, or one for each part that it multiplies by apart."""
    scale = ops.convert_to_numpy(layer.kernel_scale).reshape(-1)
    codes = by_channel(layer.codes, layer.channel_axes)
    return [
        Kernel(name, codes[:, columns], scale[columns], layer.container_bits)
        for columns in getattr(layer, "separate_columns", (slice(None),))
    ]


def kernel_tensor(model: schema.ModelT, found: Match) -> schema.TensorT:
    """Creates the constant integer tensor of a `Match`, and its buffer in the model."""
    bits = found.kernel.bits
    return schema.TensorT(
        name=found.kernel.layer,
        shape=np.array(found.codes.shape, np.int32),
        hasRank=True,
        type=flatbuffer.TENSOR_TYPES[bits],
        buffer=flatbuffer.append_buffer(model, pack(found.codes, bits)),
        quantization=schema.QuantizationParametersT(
            scale=found.scale,
            zeroPoint=np.zeros(found.scale.size, np.int64),
            quantizedDimension=found.axis,
        ),
    )


def decode(
    model: schema.ModelT, graph: schema.SubGraphT, index: int, found: Match
) -> None:
    """Computes a tensor of a graph from a new integer constant, by DEQUANTIZE.

    Args:
        model: a parsed file, which is changed.
        graph: one of its graphs.
        index: index of the tensor, which becomes a computed float tensor.
        found: `Match` of the kernel that it holds.
    """
    source = flatbuffer.append_tensor(graph, kernel_tensor(model, found))
    graph.tensors[index] = flatbuffer.computed_tensor(
        graph.tensors[source], schema.TensorType.FLOAT32
    )
    graph.operators.insert(
        0, flatbuffer.operator(model, "DEQUANTIZE", source, index, DEQUANTIZE_VERSION)
    )


def match(values: np.ndarray, kernel: Kernel) -> Match | None:
    """Recognizes a kernel in a constant, up to a factor per output channel.

    Output channels are the first axis of LiteRT's convolutions and fully connected
    operators, and the last of its depthwise convolutions. The other axes have Keras's
    order. Both places are tried.

    Args:
        values: float32 array of any shape.
        kernel: a `Kernel`.

    Returns:
        A `Match`, or None if `values` is not this kernel.
    """
    weights, channels = kernel.codes.shape
    if values.size != kernel.codes.size:
        return None
    for axis in (0, values.ndim - 1):
        if values.shape[axis] != channels:
            continue
        columns = (
            values.reshape(channels, weights).T
            if axis == 0
            else values.reshape(weights, channels)
        )
        first = columns[:FIRST_WEIGHTS], kernel.codes[:FIRST_WEIGHTS]
        if first[0][first[1] == 0].any():  # a factor keeps zeros
            continue
        # Two factors that fit within `ROUNDING` differ by twice that.
        if not _fit(*first, _factors(*first, kernel.scale), 3 * ROUNDING):
            continue
        factor = _factors(columns, kernel.codes, kernel.scale)
        if _fit(columns, kernel.codes, factor, ROUNDING):
            codes = kernel.codes * np.sign(factor).astype(np.int8)
            return Match(
                kernel,
                axis,
                codes=(codes.T if axis == 0 else codes).reshape(values.shape),
                scale=np.where(factor == 0, kernel.scale, np.abs(factor)),
                folded=bool((factor != kernel.scale).any()),
            )
    return None


def _factors(columns, codes, scale):
    """Returns the factor from codes to values per channel: the signed scale."""
    strongest = np.abs(codes).argmax(axis=0)[None]
    code = np.take_along_axis(codes, strongest, axis=0)[0]
    value = np.take_along_axis(columns, strongest, axis=0)[0]
    # A channel of zeros has no factor of its own.
    factor = np.where(code == 0, scale, value / np.where(code == 0, 1, code))
    unfolded = (columns == codes * scale).all(axis=0)
    return np.where(unfolded, scale, factor).astype(np.float32)


def _fit(columns, codes, factor, rounding):
    """Whether values are codes times factors, within a relative difference."""
    decoded = codes * factor
    return (np.abs(columns - decoded) <= rounding * np.abs(decoded)).all()
