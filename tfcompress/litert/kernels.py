"""The kernels a model plans to have in the file, and how to recognise them."""

from dataclasses import dataclass, replace

import numpy as np
from keras import ops

from tfcompress.graph.graph import Graph
from tfcompress.layers import PackedKernel, TrainingForm

# Operators that read the kernels of packed layers, as their second input, and the
# containers that they read themselves, right and no slower than INT8, the fewest bits
# first: LiteRT 2.3.0, x86-64, `python -m benchmarks.native_kernels`. INT4 convolutions
# take twice the time, INT2 ones return NaN, and INT2 takes longer than INT4.
NATIVE_BITS = {
    "CONV_2D": (8,),
    "DEPTHWISE_CONV_2D": (8,),
    "FULLY_CONNECTED": (4, 8),
}
# Relative. Folding a factor into `codes * scale` rounds a few times by 6e-8;
# neighbouring codes differ by 8e-3 at least.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Kernel:
    """What a packed layer plans to have in the file.

    Attributes:
        layer: the layer's name; inside nested models "outer/inner".
        codes: int8 array, (weights per output channel, output channels).
        scale: float32 array, (output channels,), positive.
        bits: container bits, 2, 4 or 8.
    """

    layer: str
    codes: np.ndarray
    scale: np.ndarray
    bits: int


@dataclass(frozen=True)
class Match:
    """How to write a constant of the file with the codes of a kernel.

    Attributes:
        kernel: the `Kernel`.
        axis: the constant's axis of output channels.
        codes: int8 array of the constant's shape. They are the kernel's codes,
            negated where the converter folded in a negative factor and zero
            where it folded in a zero.
        scale: float32 array, (output channels,), positive.
        folded: whether `scale` differs from the kernel's own.
    """

    kernel: Kernel
    axis: int
    codes: np.ndarray
    scale: np.ndarray
    folded: bool

    def read_by(self, operators):
        """The same in a container that these operators, by name, read themselves."""
        native = set.intersection(*(set(NATIVE_BITS[name]) for name in operators))
        bits = min(bits for bits in native if bits >= self.kernel.bits)
        return replace(self, kernel=replace(self.kernel, bits=bits))


def packed_kernels(model):
    """The `Kernel` of each packed layer of a model, in the order of their calls.

    Raises:
        ValueError: if the model has layers that are still in training, or has no graph.
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
    return [
        _kernel(name, layer)
        for name, layer in layers.items()
        if isinstance(layer, PackedKernel)
    ]


def _kernel(name, layer):
    # Output channels are the last axes of every Keras kernel.
    scale = ops.convert_to_numpy(layer.kernel_scale).reshape(-1)
    codes = layer.codes.reshape(-1, scale.size)
    return Kernel(name, codes, scale, layer.container_bits)


def match(values, kernel):
    """Recognises a kernel in a constant, up to a factor per output channel.

    LiteRT keeps output channels first in convolutions and fully connected
    layers, and last in depthwise convolutions; the other axes keep the order
    they have in Keras. Both places are tried.

    Args:
        values: float32 array of any shape.
        kernel: a `Kernel`.

    Returns:
        A `Match`, or None if `values` is something else.
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
        factor = _factors(columns, kernel)
        decoded = kernel.codes * factor
        if (np.abs(columns - decoded) <= ROUNDING * np.abs(decoded)).all():
            codes = kernel.codes * np.sign(factor).astype(np.int8)
            return Match(
                kernel,
                axis,
                codes=(codes.T if axis == 0 else codes).reshape(values.shape),
                scale=np.where(factor == 0, kernel.scale, np.abs(factor)),
                folded=bool((factor != kernel.scale).any()),
            )
    return None


def _factors(columns, kernel):
    """Per channel, the factor that turns codes into values: the scale, signed."""
    strongest = np.abs(kernel.codes).argmax(axis=0)[None]
    code = np.take_along_axis(kernel.codes, strongest, axis=0)[0]
    value = np.take_along_axis(columns, strongest, axis=0)[0]
    # A channel without any weight has no factor of its own.
    factor = np.where(code == 0, kernel.scale, value / np.where(code == 0, 1, code))
    unfolded = (columns == kernel.codes * kernel.scale).all(axis=0)
    return np.where(unfolded, kernel.scale, factor).astype(np.float32)
