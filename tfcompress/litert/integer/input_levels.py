"""Levels of quantized inputs in int8."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import keras
import numpy as np

from tfcompress.layers import QuantizeActivation

LOW, HIGH = -128, 127

# The smallest and the largest value.
Limits: TypeAlias = tuple[float | np.floating, float | np.floating]


@dataclasses.dataclass(frozen=True)
class Levels:
    """Levels of a quantized input, as points of an int8 grid.

    A level is a whole number of steps of the grid. int8 reaches further than the last
    level of fewer than 8 bits. Values therefore pass a finer grid first, which ends at
    the last level.

    Attributes:
        scale: float. Difference of two levels.
        zero_point: int. Zero point of both grids.
        fine: int. Steps of the finer grid per level; 1 if there is none. It is odd, so
            that rounding to the finer grid and then to levels is rounding once.
    """

    scale: float
    zero_point: int
    fine: int

    def grids(self) -> list[tuple[np.float32, int]]:
        """Returns `(scale, zero point)` of each grid that values pass, in order."""
        grids = [(np.float32(self.scale / self.fine), self.zero_point)]
        if self.fine > 1:
            grids.append((np.float32(self.scale), self.zero_point))
        return grids

    def limits(self) -> Limits:
        """Returns the smallest and the largest value of the first grid."""
        scale, zero_point = self.grids()[0]
        return scale * (LOW - zero_point), scale * (HIGH - zero_point)

    def needs(self) -> Limits:
        """Returns limits that suffice before the values pass the grids.

        Values within 0.4 levels of `limits` round to the outermost levels in any case.
        """
        low, high = self.limits()
        return min(0.0, low + 0.4 * self.scale), high - 0.4 * self.scale


def levels_of(layer: QuantizeActivation) -> Levels:
    """Returns the levels of a layer in int8.

    Raises:
        ValueError: if no finer grid ends within half a step of the last levels.
    """
    scale = float(keras.ops.convert_to_numpy(layer.scale))
    zero_point = 0 if layer.signed else LOW
    if layer.bits == 8:
        return Levels(scale, zero_point, 1)
    low, high = LOW - zero_point, HIGH - zero_point
    for fine in range(1, 256, 2):
        if abs(high / fine - layer.high) < 0.5 and abs(low / fine - layer.low) < 0.5:
            return Levels(scale, zero_point, fine)
    raise ValueError(
        "Inputs of 2, 3, 4 or 8 bits can be computed with int8. Received: "
        f"{layer.bits} bits in '{layer.name}'. Export with target='litert' and "
        "activations='float'."
    )


def limits_of(readers: Sequence[Levels | None], low: float, high: float) -> Limits:
    """Returns the smallest and the largest value that an int8 tensor should represent.

    If all readers of the tensor have the same levels, the limits are those of the
    levels. Otherwise a level is an odd number of steps, so that rounding to steps and
    then to levels is rounding once. If no such grid reaches far enough, the limits are
    those of the samples.

    Args:
        readers: `Levels` of each layer that reads the tensor, None for a reader without
            a quantized input.
        low, high: smallest and largest value of the tensor in the samples.
    """
    bound = [levels for levels in readers if levels is not None]
    if not bound:
        return low, high
    if all(levels == bound[0] for levels in readers):
        return bound[0].limits()
    needs = [levels.needs() for levels in bound]
    if len(bound) < len(readers):
        needs.append((min(low, 0.0), high))
    least, most = min(x for x, _ in needs), max(x for _, x in needs)
    for fine in range(bound[0].fine, 0, -2):
        step = bound[0].scale / fine
        zero_point = max(LOW, math.ceil(LOW - least / step))
        if (HIGH - zero_point) * step >= most:
            return step * (LOW - zero_point), step * (HIGH - zero_point)
    return low, high
