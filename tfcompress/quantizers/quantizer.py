"""Base class of all quantizers."""

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from tfcompress.types import ArrayLike, Tensor

OptionalQuantizer = TypeVar("OptionalQuantizer", bound="Quantizer | None")


class Quantizer(keras.layers.Layer):
    """Base class of quantizers, which map a float tensor to a few bits.

    A quantizer is a Keras layer, so that its variables are tracked, saved and
    restored with the layer that owns it. One object serves one layer, which sets
    `channel_axes` before it builds the quantizer. A quantizer computes in float32
    under every dtype policy, so that the codes in training are those of the file.

    Subclasses define `bits` (int, 2 to 8) and `codes_and_scale(x)`.

    Attributes:
        channel_axes: tuple of negative ints. Axes of the output channels.
        latent_kernel: function that returns the variable that it quantizes, or None
            if that is no variable.
    """

    latent_kernel: Callable[[], Any] | None = None

    def __init__(self, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.supports_masking = True
        self.channel_axes: tuple[int, ...] = (-1,)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Bit-widths that training may choose from, increasing."""
        return (self.bits,)

    def describe(self, noun: str) -> str:
        """Returns a few words on a quantized tensor: "2/4/8-bit weights".

        Args:
            noun: str. Kind of the tensor, "weights" or "inputs".
        """
        return f"{'/'.join(map(str, self.candidates))}-bit {noun}"

    def codes_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(codes, scale)` as float32 tensors: integral codes, scale > 0."""
        raise NotImplementedError

    def encode(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Computes the integer form of `call(x)`.

        Args:
            x: float tensor or variable.

        Returns:
            `(codes, scale)`: int8 array of `x`'s shape, and positive float32 array
            that broadcasts to it. `codes * scale` equals `self(x)` exactly.
        """
        codes, scale = self.codes_and_scale(ops.convert_to_tensor(x, "float32"))
        return (
            np.asarray(ops.convert_to_numpy(codes)).astype(np.int8),
            np.asarray(ops.convert_to_numpy(scale)).astype(np.float32),
        )

    def unfinished(self) -> str | None:
        """Returns a sentence on a goal that training has not reached, or None."""
        return None

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_build_config(self) -> None:
        return None  # The layer that owns a quantizer builds it, also on loading.


def copy_quantizer(quantizer: OptionalQuantizer) -> OptionalQuantizer:
    """Returns an unbuilt quantizer of the same configuration; None for None."""
    if quantizer is None:
        return quantizer
    return type(quantizer).from_config(quantizer.get_config())
