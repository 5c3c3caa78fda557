"""Quantized activations: one positive step per tensor, integer levels."""

import math

import keras
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers.packing import code_limit
from tfcompress.quantizers.quantizer import Quantizer

# Keeps x / step and its gradient finite should training drive a clip to zero.
MIN_CLIP = 1e-8


def activation_range(bits, signed):
    """The levels of an activation: `(0, 2^bits - 1)`, or symmetric if `signed`.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """
    if bits not in range(2, 9):
        raise ValueError(f"`bits` is an integer from 2 to 8. Received: bits={bits}.")
    if signed:
        return -code_limit(bits), code_limit(bits)
    return 0, 2**bits - 1


def quantize_activation(x, step, low, high, rounding=ops.round):
    """`clip(round(x / step), low, high) * step`, half to even.

    It clips before it rounds, which is the same for integer bounds, and gives the
    step the gradient of LSQ (Esser et al. 2020, equation 3) if `rounding` passes
    the gradient straight through: `level - x / step` inside the range and
    the edge's level outside. x has a gradient of one inside and none outside.

    Args:
        x: float32 tensor.
        step: positive float32 scalar.
        low, high: integers, the smallest and largest level.
        rounding: how to round; `functional.round_straight_through` to train.

    Returns:
        float32 tensor of `x`'s shape.
    """
    return rounding(ops.clip(x / step, low, high)) * step


class ActivationQuantizer(Quantizer):
    """Quantizes a layer's input to integer levels times one step; base class.

    In inference it computes exactly `clip(round(x / step), low, high) * step` in
    float32, which is what `tfcompress.layers.QuantizeActivation` computes in a
    finalized model. Levels run from 0 to 2^bits - 1, or are symmetric from
    -(2^(bits-1) - 1) to 2^(bits-1) - 1 if `signed`.

    Subclasses give `bits` (an integer, 2 to 8) and `step()`.

    Args:
        signed: whether the input has negative values.
    """

    def __init__(self, signed=False, **kwargs):
        super().__init__(**kwargs)
        self.signed = bool(signed)

    def step(self):
        """The distance of two levels: a positive float32 scalar tensor."""
        raise NotImplementedError

    def code_range(self):
        """`(low, high)`, the smallest and largest level, integers."""
        return activation_range(self.bits, self.signed)

    def scale_value(self):
        """`step()` as a Python float."""
        return float(ops.convert_to_numpy(self.step()))

    def call(self, x):
        return self.apply(x, self.step())

    def apply(self, x, step):
        """`x` on the levels of a given step, with gradients to both."""
        low, high = self.code_range()
        return quantize_activation(x, step, low, high, F.round_straight_through)

    def get_config(self):
        return {**super().get_config(), "signed": self.signed}


@keras.saving.register_keras_serializable(package="tfcompress")
class UniformActivation(ActivationQuantizer):
    """Levels up to a learned clip.

    The step is |clip| / (2^bits - 1), or 2 |clip| / (2^bits - 1) if `signed`.
    The gradient of the clip is that of LSQ, with its gradient scale (Esser et al.
    2020, "Learned Step Size Quantization", sections 2.1 and 2.2).

    Args:
        bits: 2 to 8.
        signed: whether the input has negative values.
        initial_clip: the clip before training, a positive finite number.

    Variables: `clip`, a trainable scalar.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> QuantConv2D(64, 3, kernel_quantizer=Uniform(4),
    ...             input_quantizer=UniformActivation(4, initial_clip=6.0))
    """

    def __init__(self, bits=8, signed=False, initial_clip=1.0, **kwargs):
        super().__init__(signed=signed, **kwargs)
        activation_range(bits, signed)  # checks them
        if not 0 < initial_clip < float("inf"):
            raise ValueError(
                "`initial_clip` is a positive finite number. Received: "
                f"initial_clip={initial_clip}."
            )
        self.bits = int(bits)
        self.initial_clip = initial_clip

    def build(self, input_shape):
        self.clip = self.add_weight(
            name="clip",
            shape=(),
            initializer=keras.initializers.Constant(self.initial_clip),
        )

    def step(self):
        size = ops.maximum(ops.abs(self.clip), MIN_CLIP)
        return (2.0 * size if self.signed else size) / (2.0**self.bits - 1.0)

    def call(self, x):
        step = self.step()
        scaled = step * gradient_scale(x, self.code_range()[1])
        return self.apply(x, F.straight_through(step, scaled))

    def get_config(self):
        return {
            **super().get_config(),
            "bits": self.bits,
            "initial_clip": self.initial_clip,
        }


def gradient_scale(x, high):
    """LSQ's factor on a step's gradient, 1 / sqrt(features * high), a scalar.

    Features are the values of one sample: the loss is a mean over the batch. The
    factor makes the step move about as fast, relatively, as a weight (Esser et
    al. 2020, section 2.2).

    Args:
        x: float tensor, batch axis first; its sizes may be open.
        high: the largest level.
    """
    features = math.prod(ops.shape(x)[1:])
    return ops.rsqrt(ops.cast(features, "float32") * high)
