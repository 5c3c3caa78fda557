"""Sensitivity of a model's outputs to each gate of a bit-sharing student."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.core.distillation.soft_loss import logits, output_activations
from tfcompress.core.student import Student
from tfcompress.core.training.data import fixed_batch_size
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers.gates import BitGates
from tfcompress.schemes.bit_sharing.filter_gate import FilterGate
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

# Differences are large, and all gates see the same samples, so that few rank them: on
# ResNet-8 and ResNet-20 the ranks by 8 samples correlate by 0.99 with those by 1024.
LEAST_SAMPLES, MOST_SAMPLES = 8, 256
# Changes of smaller probabilities do not count.
_LEAST_PROBABILITY = 1e-7
# The measurement takes about as long as this number of training steps, each of which
# takes as long as three predictions.
STEPS, PREDICTIONS_PER_STEP = 50, 3


def measure_sensitivities(
    student: Student, space: SearchSpace, batches: list[Any]
) -> None:
    """Scales the importances of all gates by their effect on the model's outputs.

    Errors and magnitudes tell the change of one tensor, not of the model. So each gate
    is closed once, alone, and its cost is the squared change of the outputs, of logits
    in place of probabilities: those of confident samples hardly change. Costs are
    relative to the median over the gates to the lowest bits. Thresholds that rise
    together then close the gates of least cost first.

    Args:
        student: bit-sharing student in which nothing is frozen.
        space: its `SearchSpace`.
        batches: list of model inputs, of the size of training batches. The first
            samples are used, 8 to 256 of them.
    """
    finest = _Finest(space)
    inputs = _leading(student, batches, _sample_count(finest, batches))
    try:
        damages, filters = _measured(student, space, finest, inputs)
    finally:
        finest.release()  # also if it is interrupted: the gates are not chosen yet
    # The damage that each gate averts when it opens, never below zero.
    averted = [
        (gates, np.maximum(0.0, np.array(values[:-1]) - np.array(values[1:])))
        for gates, values in damages
    ]
    scale = np.median([values[0] for _, values in averted]) if averted else 1.0
    scale = max(scale, 1e-12)
    for gates, values in averted:
        gates.set_costs(values / scale)
    for gate, values in filters:
        # One threshold decides on all groups, at the cost of all.
        gate.set_costs(gate.group_count * values / scale)


def _sample_count(finest, batches):
    """Samples for a measurement that takes about `STEPS` training steps."""
    batch_size = len(keras.tree.flatten(batches[0])[0]) if batches else 0
    predictions = finest.predictions()
    fitting = STEPS * PREDICTIONS_PER_STEP * batch_size // max(1, predictions)
    return min(max(fitting, LEAST_SAMPLES), MOST_SAMPLES)


def _measured(student, space, finest, inputs):
    """`(gates, damage by each of its bits)`, and `(filter gate, damage by groups)`."""
    finest.open()
    activations = output_activations(student)
    reference = _outputs(student, inputs, activations)

    def damage():
        return sum(
            float(np.square(out - ref).mean() / max(np.square(ref).mean(), 1e-12))
            for out, ref in zip(
                _outputs(student, inputs, activations), reference, strict=True
            )
        )

    filter_gates = space.filter_gates.values()
    steps = len(finest.gates) + len(filter_gates)
    with progress_bar("Sensitivities to bits and filters", steps) as bar:
        damages = []
        for gates in bar.over(finest.gates):
            *lower, _ = gates.candidates  # the highest bits are the reference
            values = [finest.damage_at(gates, bits, damage) for bits in lower]
            damages.append((gates, [*values, 0.0]))
        filters = [
            (gate, _marginal_damages(gate, finest, damage))
            for gate in bar.over(filter_gates)
        ]
    return damages, filters


class _Finest:
    """All gates of a `SearchSpace`, open from `open` until `release`."""

    def __init__(self, space: SearchSpace) -> None:
        self.gates: list[BitGates] = [
            gates for gates in space.bit_gates() if gates.threshold is not None
        ]
        self._filter_gates = list(space.filter_gates.values())

    def open(self) -> None:
        for gates in self.gates:
            gates.freeze(gates.candidates[-1])
        for gate in self._filter_gates:
            gate.freeze(np.ones(gate.group_count, bool))

    def predictions(self) -> int:
        """Returns the number of predictions that a measurement of all gates takes."""
        bits = sum(len(gates.candidates) - 1 for gates in self.gates)
        return 1 + bits + 2 * len(self._filter_gates)

    def damage_at(
        self, gates: BitGates, bits: int, damage: Callable[[], float]
    ) -> float:
        gates.freeze(bits)
        value = damage()
        gates.freeze(gates.candidates[-1])
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
        for gates in self.gates:
            gates.frozen_bits.assign(0.0)
        for gate in self._filter_gates:
            gate.unfreeze()


def _marginal_damages(
    gate: FilterGate, finest: _Finest, damage: Callable[[], float]
) -> np.ndarray:
    """Damage by each group of filters once all less important ones are closed.

    The damage by many groups exceeds the sum of each alone. So the marginal damages are
    a line that meets two measurements: the first group, and all that may close.
    """
    order = np.argsort(keras.ops.convert_to_numpy(gate.importances()))
    most = max(1, min(gate.most_closed, gate.group_count - 1))
    first = finest.damage_without(gate, order[:1], damage)
    slope = 0.0
    if most > 1:
        whole = finest.damage_without(gate, order[:most], damage)
        slope = max(0.0, 2 * (whole - most * first) / (most * (most - 1)))
    marginal: np.ndarray = np.empty(gate.group_count)
    marginal[order] = first + slope * np.arange(gate.group_count)
    return marginal


def _outputs(model, batches, activations):
    """Outputs of all batches as float64 arrays, logits in place of probabilities."""
    found = []
    for inputs in batches:
        outputs = keras.tree.flatten(model.predict_on_batch(inputs))
        for output, activation in zip(outputs, activations, strict=True):
            values = np.asarray(keras.ops.convert_to_numpy(output), np.float64)
            if activation is not None:
                values = np.clip(values, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
                values = keras.ops.convert_to_numpy(logits(values, activation))
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
