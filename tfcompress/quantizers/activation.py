"""Quantizers of activations: integer levels times one step per tensor."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfcompress.arguments import check_number
from tfcompress.quantizers import functional as F
from tfcompress.quantizers.packing import code_limit
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.types import Tensor

# Keeps x / step and its gradient finite where training moves a clip to zero.
MIN_CLIP = 1e-8


def activation_range(bits: int, signed: bool) -> tuple[int, int]:
    """Returns the smallest and the largest level of an activation.

    They are `(0, 2^bits - 1)`, or symmetric around zero if `signed`. With 8 bits these
    are -128 and 127: int8 operators do not clip at -127.

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """
    if bits not in range(2, 9):
        raise ValueError(f"`bits` is an integer from 2 to 8. Received: bits={bits}.")
    if signed:
        return (-128 if bits == 8 else -code_limit(bits)), code_limit(bits)
    return 0, 2**bits - 1


def quantize_activation(
    x: Tensor,
    step: Tensor,
    low: int,
    high: int,
    rounding: Callable[[Tensor], Tensor] = ops.round,
) -> Tensor:
    """Computes `clip(round(x / step), low, high) * step`, half to even.

    Clipping comes before rounding, which is the same for integer bounds. If
    `rounding` is a straight-through estimator, the step has the gradient of LSQ
    (Esser et al. 2020, equation 3): `level - x / step` inside the range, the bound
    outside. The gradient of `x` is one inside the range and zero outside.

    Args:
        x: float32 tensor.
        step: positive float32 scalar.
        low, high: int. The smallest and the largest level.
        rounding: function of a tensor; `functional.round_straight_through` to train.

    Returns:
        float32 tensor of `x`'s shape.
    """
    return rounding(ops.clip(x / step, low, high)) * step


class ActivationQuantizer(Quantizer):
    """Base class of quantizers of a layer's input.

    Inference computes exactly `clip(round(x / step), low, high) * step` in float32,
    as `tfcompress.layers.QuantizeActivation` does in a finalized model. Levels run
    from 0 to 2^bits - 1, or those of `activation_range` if `signed`.

    Subclasses define `bits` (int, 2 to 8) and `step()`.

    Args:
        signed: bool. Whether the input has negative values.
    """

    def __init__(self, signed: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.signed = bool(signed)

    def step(self) -> Tensor:
        """Returns the distance of two levels: a positive float32 scalar tensor."""
        raise NotImplementedError

    def code_range(self) -> tuple[int, int]:
        """Returns `(low, high)`, the smallest and the largest level."""
        return activation_range(self.bits, self.signed)

    def scale_value(self) -> float:
        """Returns `step()` as a Python float."""
        return float(ops.convert_to_numpy(self.step()))

    def call(self, x: Tensor) -> Tensor:
        return self.apply(x, self.step())

    def apply(self, x: Tensor, step: Tensor) -> Tensor:
        """Quantizes `x` with a given step, with gradients to both."""
        low, high = self.code_range()
        return quantize_activation(x, step, low, high, F.round_straight_through)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "signed": self.signed}


@keras.saving.register_keras_serializable(package="tfcompress")
class UniformActivation(ActivationQuantizer):
    """Quantizer of activations with a learned clip.

    The step is |clip| / (2^bits - 1), or 2 |clip| / (2^bits - 1) if `signed`.
    The clip has the gradient and the gradient scale of LSQ (Esser et al. 2020,
    "Learned Step Size Quantization", sections 2.1 and 2.2).

    Args:
        bits: int. Bits of a level, 2 to 8.
        signed: bool. Whether the input has negative values.
        initial_clip: positive finite float. The clip before training.

    Variables:
        clip: float32 scalar, trainable.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> QuantConv2D(64, 3, kernel_quantizer=Uniform(4),
    ...             input_quantizer=UniformActivation(4, initial_clip=6.0))
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = False,
        initial_clip: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(signed=signed, **kwargs)
        activation_range(bits, signed)  # raises if `bits` is out of range
        check_number(
            "initial_clip",
            initial_clip,
            "a positive finite number",
            lambda x: 0 < x < float("inf"),
        )
        self.bits = int(bits)
        self.initial_clip = initial_clip

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.clip = self.add_weight(
            name="clip",
            shape=(),
            initializer=keras.initializers.Constant(self.initial_clip),
        )

    def step(self) -> Tensor:
        size = ops.maximum(ops.abs(self.clip), MIN_CLIP)
        return (2.0 * size if self.signed else size) / (2.0**self.bits - 1.0)

    def call(self, x: Tensor) -> Tensor:
        step = self.step()
        scaled = step * gradient_scale(x, self.code_range()[1])
        return self.apply(x, F.straight_through(step, scaled))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "bits": self.bits,
            "initial_clip": self.initial_clip,
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class FixedActivation(ActivationQuantizer):
    """Quantizer of activations with 8 bits and a given step, such as 1/256.

    Int8 operators prescribe the steps of some results, those of a softmax for example.

    Args:
        fixed_step: positive finite float. Distance of two levels.
        signed: bool. Whether the input has negative values.

    Raises:
        ValueError: if `fixed_step` is no such number.
    """

    bits = 8

    def __init__(self, fixed_step: float, signed: bool = False, **kwargs: Any) -> None:
        super().__init__(signed=signed, **kwargs)
        check_number(
            "fixed_step",
            fixed_step,
            "a positive finite number",
            lambda x: 0 < x < float("inf"),
        )
        self.fixed_step = fixed_step

    def step(self) -> Tensor:
        return ops.convert_to_tensor(self.fixed_step, "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fixed_step": self.fixed_step}


def gradient_scale(x: Tensor, high: int) -> float | Tensor:
    """Returns LSQ's factor on the gradient of a step, 1 / sqrt(features * high).

    Features are the values of one sample, because the loss is a mean over the batch.
    With the factor a step changes about as fast, relatively, as a weight (Esser et
    al. 2020, section 2.2).

    Args:
        x: float tensor, batch axis first; axis sizes may be unknown.
        high: int. The largest level.

    Returns:
        Float; a float32 scalar tensor where the sizes are not known.
    """
    sizes = tuple(x.shape[1:])
    if None not in sizes:
        return 1.0 / math.sqrt(max(1, math.prod(sizes)) * high)
    features = math.prod(ops.shape(x)[1:])
    return ops.rsqrt(ops.cast(features, "float32") * high)
