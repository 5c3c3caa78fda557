"""Sensitivity of a model's outputs to each gate of a bit-sharing student."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.distillation.soft_loss import logits, output_activations
from tfcompress.core.student import Student
from tfcompress.core.training.calibration import read_activations
from tfcompress.core.training.data import fixed_batch_size
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers.bit_sharing import GatedBits
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate
from tfcompress.schemes.bit_sharing.search_space import GateValues, SearchSpace
from tfcompress.types import ArrayLike

# Differences are large, and all gates see the same samples, so that few rank them: on
# ResNet-8 the ranks by 8 samples correlate by 0.97 with those by 1024.
LEAST_SAMPLES, MOST_SAMPLES = 8, 256
# Training adapts weights to their grid, but activations hardly. Weights then cost about
# this share of their measured change: with it, changes at uniform bits order like the
# accuracies after training, see docs/method_notes.md. Training also adapts weights to
# removed filters, but the others bear low bits worse: filters cost their whole change.
ADAPTED = 0.2
# Changes of smaller probabilities do not count.
_LEAST_PROBABILITY = 1e-7
# Kinds of gates that choose bits, in the values of a `SearchSpace`.
_BITS = ("weights", "activations")
# Damage by bits at which outputs overflow, such as those in float16.
_OVERFLOW = 1e6
# The measurement takes about as long as this number of training steps, each of which
# takes as long as three predictions.
STEPS, PREDICTIONS_PER_STEP = 50, 3


def measure_sensitivities(
    student: Student,
    space: SearchSpace,
    recalibrate: Recalibration,
    activations: Mapping[str, np.ndarray] | None = None,
) -> GateValues:
    """Scales the importances of all gates by their effect on the model's outputs.

    Errors and magnitudes tell the change of one tensor, not of the model. So each gate
    is closed once, alone, and its cost is the squared change of the outputs, of logits
    in place of probabilities: those of confident samples hardly change. As after a
    training, each bit-width has its own range, and batch normalization the statistics
    of the rounded batch; costs of weights' bits are multiplied by `ADAPTED`. Costs are
    relative to the median over the gates to the lowest bits. Thresholds that rise
    together then close the gates of least cost first. Bits whose next ones cost more
    share that cost, since a closed gate hides all above it.

    Args:
        student: bit-sharing student in which nothing is frozen.
        space: its `SearchSpace`.
        recalibrate: `Recalibration` of the student. The first samples of its batches
            are used, 8 to 256 of them.
        activations: `read_activations` of the student, or None if they are unknown.

    Returns:
        The measured costs, in the form of `SearchSpace.costs()`. Importances are
        bounded, and costs are not.
    """
    finest = _Finest(space)
    count = _sample_count(finest, recalibrate.batches)
    inputs = _leading(student, recalibrate.batches, count)
    try:
        if activations is None:
            activations = read_activations(recalibrate, finest.activations, inputs)
        finest.find_ranges(activations)
        averted = _averted(student, finest, recalibrate, inputs)
    finally:
        finest.release()  # also if it is interrupted: the gates are not chosen yet
    lowest = [x[0] for kind in _BITS for x in averted[kind].values()]
    scale = max(np.median(lowest) if lowest else 1.0, 1e-12)
    costs = {
        kind: {name: values / scale for name, values in found.items()}
        for kind, found in averted.items()
    }
    for name, quantizer in finest.weights.items():
        quantizer.gates.set_costs(decreasing(costs["weights"][name]))
    for name, quantizer in finest.activations.items():
        quantizer.gates.set_costs(decreasing(costs["activations"][name]))
    for name, gate in space.filter_gates.items():
        gate.set_costs(costs["filters"][name])
    return {
        kind: {name: costs[kind].get(name, none) for name, none in present.items()}
        for kind, present in space.costs().items()
    }


def decreasing(costs: ArrayLike) -> np.ndarray:
    """Returns the costs of a quantizer's gates without increases.

    Neighbors that increase have their mean, by pooling adjacent violators: of all
    sequences that do not increase, it is the nearest in least squares.

    Args:
        costs: float array (gates,), from the lowest bits to the highest.

    Returns:
        float64 array (gates,).
    """
    pools: list[tuple[float, int]] = []  # means and sizes
    for cost in np.asarray(costs, np.float64):
        mean, size = float(cost), 1
        while pools and pools[-1][0] < mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    return np.array([mean for mean, size in pools for _ in range(size)])


def _sample_count(finest, batches):
    """Samples for a measurement that takes about `STEPS` training steps."""
    batch_size = len(keras.tree.flatten(batches[0])[0]) if batches else 0
    predictions = finest.predictions()
    fitting = STEPS * PREDICTIONS_PER_STEP * batch_size // max(1, predictions)
    return min(max(fitting, LEAST_SAMPLES), MOST_SAMPLES)


def _averted(student, finest, recalibrate, inputs):
    """Damages that open gates avert, never below zero, as after a training.

    Returns:
        Dict of "weights" and "activations", `{layer name: array (gates,)}`, and
        "filters", `{layer name: array (groups,)}`.
    """
    finest.open()
    activations = output_activations(student)
    reference = _outputs(recalibrate, inputs, activations)

    def damage():
        with np.errstate(invalid="ignore"):
            outputs = _outputs(recalibrate, inputs, activations)
            value = sum(
                float(np.square(out - ref).mean() / max(np.square(ref).mean(), 1e-12))
                for out, ref in zip(outputs, reference, strict=True)
            )
        return value if np.isfinite(value) else _OVERFLOW

    def by_bits(quantizer, share):
        *lower, _ = quantizer.candidates  # the highest bits are the reference
        damages = [share * finest.damage_at(quantizer, b, damage) for b in lower]
        return np.maximum(0.0, -np.diff([*damages, 0.0]))

    quantizers, gates = finest.quantizers(), finest.filter_gates
    with progress_bar(
        "Sensitivities to bits and filters", len(quantizers) + len(gates)
    ) as bar:
        return {
            "weights": {
                name: by_bits(quantizer, ADAPTED)
                for name, quantizer in bar.over(finest.weights.items())
            },
            "activations": {
                name: by_bits(quantizer, 1.0)
                for name, quantizer in bar.over(finest.activations.items())
            },
            # One threshold decides on all groups, at the cost of all.
            "filters": {
                gate.source: gate.group_count * _marginal_damages(gate, finest, damage)
                for gate in bar.over(gates)
            },
        }


class _Finest:
    """All gates of a `SearchSpace`, open from `open` until `release`.

    Attributes:
        weights, activations: `{layer name: quantizer}`. Those with bits to choose.
        filter_gates: list of `FilterGate`.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.weights = space.searched_weights()
        self.activations = space.searched_activations()
        self.filter_gates = list(space.filter_gates.values())
        self._kernels = {
            name: space.layers[name].latent_kernel for name in self.weights
        }
        self._ranges_before = [
            (quantizer, ops.convert_to_numpy(quantizer.clip))
            for quantizer in self.quantizers()
        ]
        self._clips: dict[GatedBits, dict[int, float]] = {}

    def quantizers(self) -> list[GatedBits]:
        """Returns the quantizers of weights, then those of activations."""
        return [*self.weights.values(), *self.activations.values()]

    def predictions(self) -> int:
        """Returns the number of predictions that a measurement of all gates takes."""
        bits = sum(len(x.candidates) - 1 for x in self.quantizers())
        return 1 + bits + 2 * len(self.filter_gates)

    def find_ranges(self, activations: Mapping[str, np.ndarray]) -> None:
        """Finds the best range of each candidate.

        Args:
            activations: `read_activations` of the student.
        """
        for name, weights in self.weights.items():
            self._clips[weights] = weights.candidate_clips(self._kernels[name])
        for name, quantizer in self.activations.items():
            self._clips[quantizer] = quantizer.candidate_clips(activations[name])

    def open(self) -> None:
        self._set_searching(False)  # passes are shorter if no gate learns
        for quantizer in self.quantizers():
            self._choose(quantizer, quantizer.candidates[-1])
        for gate in self.filter_gates:
            gate.freeze(np.ones(gate.group_count, bool))

    def damage_at(
        self, quantizer: GatedBits, bits: int, damage: Callable[[], float]
    ) -> float:
        self._choose(quantizer, bits)
        value = damage()
        self._choose(quantizer, quantizer.candidates[-1])
        return value

    def damage_without(
        self, gate: FilterGate, groups: np.ndarray, damage: Callable[[], float]
    ) -> float:
        is_open: np.ndarray = np.ones(gate.group_count, bool)
        is_open[groups] = False
        gate.freeze(is_open)
        value = damage()
        gate.freeze(np.ones(gate.group_count, bool))
        return value

    def release(self) -> None:
        self._set_searching(True)
        for quantizer, clip in self._ranges_before:
            quantizer.gates.frozen_bits.assign(0.0)
            quantizer.clip.assign(clip)
        for gate in self.filter_gates:
            gate.unfreeze()

    def _set_searching(self, searching):
        for part in (*(x.gates for x in self.quantizers()), *self.filter_gates):
            part.is_searching = searching

    def _choose(self, quantizer, bits):
        quantizer.gates.freeze(bits)
        quantizer.clip.assign(self._clips[quantizer][bits])


def _marginal_damages(
    gate: FilterGate, finest: _Finest, damage: Callable[[], float]
) -> np.ndarray:
    """Damage by each group of filters once all less important ones are closed.

    The damage by many groups exceeds the sum of each alone. So the marginal damages are
    a line that meets two measurements: the first group, and all that may close.
    """
    order = np.argsort(ops.convert_to_numpy(gate.importances()))
    most = max(1, min(gate.most_closed, gate.group_count - 1))
    first = finest.damage_without(gate, order[:1], damage)
    slope = 0.0
    if most > 1:
        whole = finest.damage_without(gate, order[:most], damage)
        slope = max(0.0, 2 * (whole - most * first) / (most * (most - 1)))
    marginal: np.ndarray = np.empty(gate.group_count)
    marginal[order] = first + slope * np.arange(gate.group_count)
    return marginal


def _outputs(recalibrate, batches, activations):
    """Outputs of all batches as float64 arrays, logits in place of probabilities."""
    found = []
    for inputs in batches:
        outputs = keras.tree.flatten(recalibrate.outputs(inputs))
        for output, activation in zip(outputs, activations, strict=True):
            values = np.asarray(output, np.float64)
            if activation is not None:
                values = np.clip(values, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
                values = ops.convert_to_numpy(logits(values, activation))
            if activation == "softmax":
                values = values - values.mean(axis=-1, keepdims=True)
            found.append(values)
    return found


def _leading(model, batches, samples):
    """The first samples of a list of batches.

    Those of equal sizes are one batch, if the model allows it.
    """
    chosen, count = [], 0
    for batch in batches:
        chosen.append(batch)
        count += len(keras.tree.flatten(batch)[0])
        if count >= samples:
            break
    if fixed_batch_size(model) is not None:
        return chosen
    of_size: dict[tuple, list[Any]] = {}
    for batch in chosen:
        sizes = tuple(np.shape(array)[1:] for array in keras.tree.flatten(batch))
        of_size.setdefault(sizes, []).append(batch)
    return [
        keras.tree.map_structure(
            lambda *parts: np.concatenate(parts)[:samples], *batches
        )
        for batches in of_size.values()
    ]
