"""Quantizer of weights with a codebook that is fitted to them."""

import keras
import numpy as np
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers.clustering import nearest
from tfcompress.quantizers.packing import code_limit
from tfcompress.quantizers.quantizer import Quantizer
from tfcompress.types import ArrayLike, Tensor

_LIMIT = code_limit(8)


@keras.saving.register_keras_serializable(package="tfcompress")
class Codebook(Quantizer):
    """Quantizer of weights to a codebook: integer levels times one step, with zero.

    `tfcompress.SizeConstrained` sets levels, step and keep mask (arXiv 1910.05897);
    they are not computed from the present weights. Each weight takes the nearest
    level. The gradient is straight-through, but zero for weights held at zero.

    Variables (not trainable):
        level_of: float32 (255,). The level nearest to each of -127..127.
        step: float32 scalar. Positive distance of neighboring integers.
        width: float32 scalar. Bits of an index into the codebook.
        mask: bool, of the kernel's shape. Keep mask: false holds a weight at zero.
        quantizes: float32 scalar. 0 while the float kernel is used as it is, else 1.
        frozen: float32 scalar. 1 once keep mask and levels are frozen, 2 if they are
            and exceed the budget, 0 before; -1 while they are preliminary, before a
            search.
        anchor: float32, of the kernel's shape. V - U of ADMM, the auxiliary variable
            less the scaled dual variable.
        dual: float32, of the kernel's shape. U of ADMM, the scaled dual variable.
    """

    def build(self, kernel_shape: tuple[int, ...]) -> None:
        state = {"trainable": False, "aggregation": "only_first_replica"}
        self.level_of = self.add_weight(
            name="level_of", shape=(2 * _LIMIT + 1,), initializer="zeros", **state
        )
        self.level_of.assign(np.arange(-_LIMIT, _LIMIT + 1))
        self.step = self.add_weight(name="step", initializer="ones", **state)
        self.width = self.add_weight(
            name="width", initializer=keras.initializers.Constant(8), **state
        )
        self.mask = self.add_weight(
            name="mask", shape=kernel_shape, dtype="bool", initializer="ones", **state
        )
        self.quantizes = self.add_weight(name="quantizes", initializer="ones", **state)
        self.frozen = self.add_weight(name="fixed", initializer="zeros", **state)
        self.anchor, self.dual = (
            self.add_weight(name=name, shape=kernel_shape, initializer="zeros", **state)
            for name in ("anchor", "dual")
        )

    @property
    def candidates(self) -> tuple[int, ...]:
        return tuple(range(2, 9))

    def describe(self, noun: str) -> str:
        return f"{noun} from a codebook of at most 8 bits"

    @property
    def bits(self) -> int:
        """Bits of the largest level, 2 to 8."""
        largest = np.abs(ops.convert_to_numpy(self.level_of)).max()
        return max(2, int(largest).bit_length() + 1)

    def set_codebook(
        self, width: int, levels: ArrayLike, step: float, mask: ArrayLike
    ) -> None:
        """Sets the codebook and the keep mask.

        Args:
            width: int. Bits of an index into the codebook, 1 to 8.
            levels: ascending integers in [-127, 127], with zero among them.
            step: positive float. Value of the level 1.
            mask: bool array of the kernel's shape. False holds a weight at zero.
        """
        levels = np.asarray(levels, np.float32)
        self.level_of.assign(nearest(np.arange(-_LIMIT, _LIMIT + 1), levels))
        self.step.assign(step)
        self.width.assign(width)
        self.mask.assign(np.asarray(mask, bool))

    def codes_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = ops.clip(ops.round(x / self.step), -_LIMIT, _LIMIT)
        # NaN has no level: the bounds keep its position one of the array.
        positions = ops.clip(ops.cast(positions, "int32") + _LIMIT, 0, 2 * _LIMIT)
        codes = ops.take(self.level_of, positions)
        channels = {axis % len(x.shape) for axis in self.channel_axes}
        shape = [n if i in channels else 1 for i, n in enumerate(x.shape)]
        scale = ops.broadcast_to(ops.convert_to_tensor(self.step), shape)
        return codes * ops.cast(self.mask, codes.dtype), scale

    def call(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel, "float32")
        codes, scale = self.codes_and_scale(kernel)
        passed = kernel * ops.cast(self.mask, kernel.dtype)
        quantized = F.straight_through(codes * scale, passed)
        on = ops.convert_to_tensor(self.quantizes)
        return on * quantized + (1.0 - on) * kernel

    def unfinished(self) -> str | None:
        if float(ops.convert_to_numpy(self.frozen)) > 0:
            return None
        return (
            "the search for its zeros and bits has not ended. Train with `fit` to the "
            "end of the search."
        )
