"""How much a model's outputs suffer when a gate closes."""

import keras
import numpy as np

# As many samples tell layers apart: differences are large, and all see the same ones.
SAMPLES = 256


def measure_sensitivities(student, space, batches):
    """Scales the importances that gates compare with their thresholds.

    Errors and magnitudes say how much one tensor changes, not what that does to the
    model. So each gate is closed once, alone, and its importance set by what that
    costs: the squared change of the outputs, relative to the median over the gates to
    the lowest bits. Thresholds that rise together then close first what matters least.

    Args:
        student: a bit-sharing student in which nothing is fixed.
        space: its `SearchSpace`.
        batches: list of model inputs; the first `SAMPLES` samples are used.
    """
    inputs = _leading(batches, SAMPLES)
    finest = _Finest(space)
    reference = _outputs(student, inputs)

    def damage():
        return sum(
            float(np.square(out - ref).mean() / max(np.square(ref).mean(), 1e-12))
            for out, ref in zip(_outputs(student, inputs), reference, strict=True)
        )

    damages = [
        (gates, [finest.damage_at(gates, bits, damage) for bits in gates.candidates])
        for gates in finest.gates
    ]
    filters = [
        (gate, _marginal_damages(gate, finest, damage))
        for gate in space.filter_gates.values()
    ]
    finest.release()
    # The damage that each gate averts when it opens; never below zero.
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


def _marginal_damages(gate, finest, damage):
    """What each group of filters costs once all less important ones are gone.

    A line through the first and the sum of the most that may go: the damage of many is
    more than the sum of each alone.
    """
    order = np.argsort(keras.ops.convert_to_numpy(gate.importances()))
    most = max(1, min(gate.most_closed, gate.group_count - 1))
    first = finest.damage_without(gate, order[:1], damage)
    slope = 0.0
    if most > 1:
        whole = finest.damage_without(gate, order[:most], damage)
        slope = max(0.0, 2 * (whole - most * first) / (most * (most - 1)))
    marginal = np.empty(gate.group_count)
    marginal[order] = first + slope * np.arange(gate.group_count)
    return marginal


class _Finest:
    """All gates of a `SearchSpace` open, until they are released."""

    def __init__(self, space):
        quantizers = [
            quantizer
            for layer in space.layers.values()
            for quantizer in (layer.kernel_quantizer, layer.input_quantizer)
        ]
        gates = [getattr(quantizer, "gates", None) for quantizer in quantizers]
        self.gates = [g for g in gates if g is not None and g.threshold is not None]
        self._filter_gates = list(space.filter_gates.values())
        for gates in self.gates:
            gates.freeze(gates.candidates[-1])
        for gate in self._filter_gates:
            gate.freeze(np.ones(gate.group_count, bool))

    def damage_at(self, gates, bits, damage):
        gates.freeze(bits)
        value = damage()
        gates.freeze(gates.candidates[-1])
        return value

    def damage_without(self, gate, groups, damage):
        stay = np.ones(gate.group_count, bool)
        stay[groups] = False
        gate.freeze(stay)
        value = damage()
        gate.freeze(np.ones(gate.group_count, bool))
        return value

    def release(self):
        for gates in self.gates:
            gates.frozen_bits.assign(0.0)
        for gate in self._filter_gates:
            gate.fixed.assign(0.0)


def _outputs(model, inputs):
    return [
        np.asarray(keras.ops.convert_to_numpy(output), np.float64)
        for output in keras.tree.flatten(model.predict_on_batch(inputs))
    ]


def _leading(batches, samples):
    """The first samples of a list of batches, as one batch."""
    chosen, count = [], 0
    for batch in batches:
        chosen.append(keras.tree.map_structure(np.asarray, batch))
        count += len(keras.tree.flatten(batch)[0])
        if count >= samples:
            break
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[:samples], *chosen
    )
