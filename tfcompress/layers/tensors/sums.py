"""Layer that adds two tensors on levels as int8 operators do."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfcompress.types import Tensor

# Bits of the larger factor, less one.
_BITS = 20


@keras.saving.register_keras_serializable(package="tfcompress")
class IntegerAdd(keras.layers.Add):
    """`keras.layers.Add` of two tensors on levels, as LiteRT's int8 ADD computes it.

    The operator multiplies levels by integer factors, and shifts the sum to levels of
    the result: `(a * factor_a + b * factor_b + 2^(shift - 1)) >> shift`, in int32. The
    larger factor has 21 bits.

    Variables (not trainable):
        steps: float (3,), above 0. Distances of two levels of both inputs and of the
            result.
        factors: int32 (3,). Both factors, and the shift.

    Input: list of two float tensors. Output: float tensor of levels times their
    distance, which may lie outside of int8.
    """

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        super().build(input_shape)
        self.trainable = False
        self.steps = self.add_weight((3,), "ones", name="steps", trainable=False)
        self.factors = self.add_weight(
            (3,), "zeros", name="factors", trainable=False, dtype="int32"
        )

    @staticmethod
    def takes(steps: Sequence[float] | np.ndarray) -> bool:
        """Returns whether LiteRT adds tensors of these `steps` in this way."""
        return 2.0**-10 <= max(steps[:2]) / steps[2] < 2.0**8

    def set_steps(self, steps: Sequence[float] | np.ndarray) -> None:
        """Sets `steps`, and the factors that follow."""
        values = np.asarray(steps, np.float32)
        ratios = (values[:2] / values[2]).tolist()
        shift = _BITS + 1 - math.frexp(max(ratios))[1]
        factors = [round(ratio * 2.0**shift) for ratio in ratios]
        self.steps.assign(values)
        self.factors.assign(np.int32([*factors, shift]))

    def call(self, inputs: list[Tensor]) -> Tensor:
        a, b = (
            ops.cast(ops.round(x / step), "int32")
            for x, step in zip(inputs, ops.unstack(self.steps[:2]), strict=True)
        )
        factors = ops.convert_to_tensor(self.factors)
        shift = factors[2]
        sums = a * factors[0] + b * factors[1] + ops.left_shift(1, shift - 1)
        levels = ops.right_shift(sums, shift)
        return ops.cast(levels, self.steps.dtype) * self.steps[2]
