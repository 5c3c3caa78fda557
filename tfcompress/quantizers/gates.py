"""Learned gates: hard in the forward pass, a sigmoid in the backward pass."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.quantizers import functional as F
from tfcompress.quantizers import nested
from tfcompress.quantizers.threshold import Threshold, threshold_value
from tfcompress.types import ArrayLike, Tensor

# Importances are around 1 and below this bound, which is below `MAX_THRESHOLD`.
MAX_IMPORTANCE = 1.4
# Temperature of the backward sigmoid. The paper uses 1 on errors of 0.01 to 0.1,
# where all thresholds drift alike. On errors around 1 this value separates them.
TEMPERATURE = 0.5
# Momentum per step of the running averages of errors.
MOMENTUM = 0.98


def hard_gates(
    importances: Tensor,
    thresholds: Tensor,
    frozen: Tensor | float = 0.0,
    fixed: Tensor | float = 0.0,
    bound: Tensor | None = None,
) -> Tensor:
    """Returns 1 where the importance exceeds the threshold, with a sigmoid's gradient.

    `importances` and `thresholds` have gradients of opposite signs ("Single-path Bit
    Sharing", the gradient of its gates).

    Args:
        importances: float tensor.
        thresholds: float tensor of `importances`' shape, or of size 1.
        frozen: scalar, or tensor that broadcasts to `importances`. Gates are `fixed`,
            without a gradient, where it is above 0.
        fixed: zeros and ones, of `importances`' shape.
        bound: scalar tensor or None. Upper bound of the thresholds. The gradient
            ignores it, so that a threshold above it can come back.

    Returns:
        Float tensor of `importances`' shape.
    """

    def choose(importances, thresholds, frozen, fixed, bound):
        gates, gradient = chosen_gates(importances, thresholds, frozen, fixed, bound)

        def both(upstream):
            slope = gradient(upstream)
            if tuple(thresholds.shape) == tuple(importances.shape):
                return slope, -slope
            return slope, ops.reshape(-ops.sum(slope), thresholds.shape)

        return gates, both

    constants = [*F.read(frozen, fixed), bound]
    return F.custom_gradient(choose, importances, thresholds, constants=constants)


def chosen_gates(
    importances: Tensor,
    thresholds: Tensor,
    frozen: Tensor,
    fixed: Tensor,
    bound: Tensor | None = None,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Returns the value of `hard_gates`, and its gradient to the importances.

    That to thresholds, of the same shape, is its negative.
    """
    bounded = thresholds if bound is None else ops.minimum(thresholds, bound)
    margins = importances - bounded
    is_frozen = frozen > 0

    def gradient(upstream):
        return ops.where(is_frozen, 0.0, sigmoid_slope(upstream, margins))

    hard = ops.cast(margins > 0, margins.dtype)
    return ops.where(is_frozen, fixed, hard), gradient


def sigmoid_slope(upstream: Tensor, margins: Tensor) -> Tensor:
    """Returns the gradient of gates to their margins, that of a sigmoid."""
    soft = ops.sigmoid(margins / TEMPERATURE)
    return upstream * (soft * (1.0 - soft) / TEMPERATURE)


def importance_of(cost: Tensor) -> Tensor:
    """Maps the relative cost of closing a gate to the gate's importance.

    The map is increasing, from 0 to below `MAX_IMPORTANCE`, and 1 at 1. Costs range
    over orders of magnitude, but a sigmoid has no slope far from its threshold.

    Args:
        cost: float tensor, 0 or more. Cost of closing a gate, relative to others'.
    """
    return MAX_IMPORTANCE * cost / (MAX_IMPORTANCE - 1.0 + cost)


def margins_of(importances: Tensor, thresholds: Tensor | float) -> Tensor:
    """Returns the margins of gates, in units of the cost of closing them.

    A margin is positive where the gate is open and negative where it is closed. It is
    the whole cost at a threshold of 0, and 0 at a threshold equal to the importance.
    """
    bounded = ops.clip(importances, 1e-6, 0.95 * MAX_IMPORTANCE)
    costs = (MAX_IMPORTANCE - 1.0) * bounded / (MAX_IMPORTANCE - bounded)
    return costs * (importances - thresholds) / ops.maximum(importances, 1e-6)


def expected_bits(gates: Sequence["BitGates"]) -> list[Tensor]:
    """Returns the bits of several gates, float32 scalars.

    They are differentiable in the thresholds. All gates of the same candidates take a
    few operations together, since a step computes the bits of a whole model.
    """
    by_candidates: dict[tuple[int, ...], list[int]] = {}
    for index, present in enumerate(gates):
        by_candidates.setdefault(present.candidates, []).append(index)
    bits: dict[int, Tensor] = {}
    for candidates, indices in by_candidates.items():
        alike = [gates[index] for index in indices]
        bits.update(zip(indices, _bits_of(alike, candidates), strict=True))
    return [bits[index] for index in range(len(gates))]


def _bits_of(gates, candidates):
    frozen = _stacked([x.frozen_bits for x in gates])
    if len(candidates) == 1:
        return ops.unstack(frozen)
    thresholds = [x.threshold for x in gates]
    value = threshold_value(
        _stacked([x.raw for x in thresholds]),
        _stacked([x.pace for x in thresholds])[:, None],
        _stacked([x.learns for x in thresholds])[:, None],
    )
    importances = ops.stack([x.importances() for x in gates])
    present = _present_gates(frozen[:, None], candidates, importances, value)
    expected = nested.expected_bits(present, candidates)
    return ops.unstack(ops.where(frozen > 0, frozen, expected))


def _stacked(variables):
    return ops.stack(F.read(*variables))


def _frozen_gates(bits, candidates):
    upper = ops.convert_to_tensor(candidates[1:], "float32")
    return ops.cast(upper <= bits, "float32")


def _present_gates(frozen_bits, candidates, importances, thresholds):
    """Gates of the frozen bits if there are any, else those that have been learned."""
    fixed = _frozen_gates(frozen_bits, candidates)
    importances = ops.stop_gradient(importances)
    return hard_gates(importances, thresholds, frozen_bits, fixed)


class BitGates(keras.layers.Layer):
    """Learned gates that choose one of several nested bit-widths.

    Gate j is open while its importance exceeds its threshold. Each open gate up to the
    first closed one selects the next bit-width. The importance is the running average
    of grid j's error, times a sensitivity. Because of the average all replicas,
    training and inference choose alike.

    Args:
        bits: ints. Increasing bit-widths; a single one is frozen from the start.

    Attributes:
        is_searching: bool. Whether training steps that are compiled from now on search.
            False makes the step of frozen gates shorter.

    Variables (not trainable):
        frozen_bits: float32 scalar. The frozen bit-width; 0 while the gates choose.
        errors: float32 (len(bits) - 1,). Running averages of the grids' errors.
        sensitivities: float32 (len(bits) - 1,). 1 until they are measured.
    """

    def __init__(self, bits: Iterable[int], **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.candidates = tuple(bits)
        count = len(self.candidates) - 1
        self.threshold = Threshold(count, name="threshold") if count else None
        self.is_searching = True

    def build(self) -> None:
        count = len(self.candidates) - 1
        self.frozen_bits = self.add_weight(
            name="fixed_bits",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            initializer=keras.initializers.Constant(0 if count else self.candidates[0]),
        )
        if self.threshold is not None:
            # Initially the error of an evenly spread variable.
            state = {
                "shape": (count,),
                "initializer": "ones",
                "trainable": False,
                "autocast": False,
            }
            self.errors = self.add_weight(name="errors", aggregation="mean", **state)
            self.sensitivities = self.add_weight(
                name="sensitivities", aggregation="only_first_replica", **state
            )
            self.threshold.build()

    def learn(self, training: bool | None) -> bool:
        """Returns whether a call is one of a search, in which the gates learn."""
        return bool(training and self.is_searching and self.threshold is not None)

    def gates(self, training: bool | None = None) -> Tensor:
        """Returns zeros and ones, float32 (len(bits) - 1,).

        Their gradient goes to the thresholds.

        Args:
            training: bool or None. Whether the call is one in training.
        """
        return self.rule(training)()

    def rule(self, training: bool | None = None) -> F.Rule:
        """Returns the rule of `gates(training)`: a function of the thresholds."""
        fixed = _frozen_gates(self.frozen_bits, self.candidates)
        if self.threshold is None or (training and not self.is_searching):
            return F.Rule(lambda fixed: (fixed, lambda upstream: ()), (), [fixed])

        def choose(raw, importances, pace, searching, learning, fixed):
            margins = importances - raw * pace
            hard = ops.cast(margins > 0, margins.dtype)

            def gradient(upstream):
                return (-learning * sigmoid_slope(upstream, margins),)

            return fixed + searching * hard, gradient  # one of them is 0

        searching = ops.cast(ops.equal(self.frozen_bits, 0.0), "float32")
        learning = searching * ops.convert_to_tensor(self.threshold.learns)
        raw, pace = F.read(self.threshold.raw, self.threshold.pace)
        state = [self.importances(), pace, searching, learning, fixed]
        return F.Rule(choose, [raw], state)

    def importances(self) -> Tensor:
        """Returns the importances of the gates, float32 (len(bits) - 1,)."""
        return self.errors * ops.convert_to_tensor(self.sensitivities)

    def set_costs(self, costs: ArrayLike) -> None:
        """Sets the sensitivities from the present cost of closing each gate.

        Args:
            costs: float array (len(bits) - 1,), see `importance_of`.
        """
        errors = ops.maximum(ops.convert_to_tensor(self.errors), 1e-6)
        importances = importance_of(ops.cast(costs, "float32"))
        self.sensitivities.assign(importances / errors)

    def learning(self) -> Tensor:
        """Returns whether the gates have a gradient: scalar float tensor, 1 or 0."""
        if self.threshold is None:
            return ops.zeros(())
        searching = ops.cast(ops.equal(self.frozen_bits, 0.0), "float32")
        return searching * ops.convert_to_tensor(self.threshold.learns)

    def observe(self, errors: Tensor, share: float | Tensor = 1.0) -> None:
        """Updates the running averages with the errors of one step.

        Args:
            errors: float tensor (len(bits) - 1,), see `nested.mean_errors`.
            share: float or scalar float tensor. 0 where there are no errors, else 1.
        """
        rate = (1.0 - MOMENTUM) * share * self.learning()
        old = ops.convert_to_tensor(self.errors)
        self.errors.assign(old + rate * (errors - old))

    def expected_bits(self) -> Tensor:
        """Returns the bits, a float32 scalar, differentiable in the thresholds."""
        return expected_bits([self])[0]

    def bits(self) -> int:
        """Returns the bits as a Python int; 0 if they are NaN."""
        return int(np.nan_to_num(ops.convert_to_numpy(self.expected_bits())))

    def margins(self) -> np.ndarray:
        """Returns each gate's margin, float32 (len(bits) - 1,); see `margins_of`."""
        if self.threshold is None:
            return ops.convert_to_numpy(ops.zeros((0,)))
        margins = margins_of(self.importances(), self.threshold.value())
        return ops.convert_to_numpy(margins)

    def costs(self) -> np.ndarray:
        """Returns the costs of closing gates, those above 7.6 as 7.6; as `margins`."""
        if self.threshold is None:
            return np.zeros(0, "float32")
        return ops.convert_to_numpy(margins_of(self.importances(), 0.0))

    def freeze(self, bits: int) -> None:
        """Freezes the bits, which ends the search.

        Args:
            bits: int. One of the candidates.

        Raises:
            ValueError: if `bits` is not a candidate.
        """
        if bits not in self.candidates:
            raise ValueError(
                f"`bits` is one of {self.candidates}. Received: bits={bits}."
            )
        self.frozen_bits.assign(float(bits))

    def get_build_config(self) -> None:
        return None  # The quantizer that owns it builds it.
