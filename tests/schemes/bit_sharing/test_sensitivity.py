"""Importances of gates against the change of the outputs, closed one by one."""

import keras
import numpy as np
import pytest
from scipy.optimize import isotonic_regression

import tfcompress as tfc
from tfcompress.core.training.calibration import (
    calibrate_activations,
    read_activations,
)
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.quantizers.ranges import best_clips
from tfcompress.schemes.bit_sharing.search_space import SearchSpace
from tfcompress.schemes.bit_sharing.sensitivity import (
    ADAPTED,
    LEAST_SAMPLES,
    MOST_SAMPLES,
    decreasing,
    measure_sensitivities,
)


@pytest.fixture
def measured(trained, mnist):
    """`(student, space, images)` with measured sensitivities."""
    images = mnist[0][0][:300]
    student = tfc.compress(trained, tfc.BitSharing(bops="1/50", group_size=2))
    space, *_ = measure(student, [images[:200], images[200:]])
    return student, space, images[:MOST_SAMPLES]


def measure(student, batches):
    """Measures, and checks that all else is as before.

    Returns:
        The search space, the batches that the model was called on, and the costs.
    """
    space, recalibrate = SearchSpace(student), Recalibration(student, batches)
    calibrate_activations(recalibrate)
    called, outputs = [], recalibrate.outputs
    recalibrate.outputs = lambda inputs: called.append(inputs) or outputs(inputs)
    sensitivities = [q.gates.sensitivities for q in searched(space).values()]
    sensitivities += [gate.sensitivities for gate in space.filter_gates.values()]
    measured = {id(variable) for variable in sensitivities}
    others = [v for v in student.variables if id(v) not in measured]
    before = [np.array(variable) for variable in others]
    costs = measure_sensitivities(student, space, recalibrate)
    for value, variable in zip(before, others, strict=True):
        np.testing.assert_array_equal(value, variable, variable.path)
    return space, called, costs


def searched(space):
    """`{(layer name, 0 for weights, 1 for activations): quantizer}`."""
    weights, activations = space.searched_weights(), space.searched_activations()
    return {
        **{(name, 0): quantizer for name, quantizer in weights.items()},
        **{(name, 1): quantizer for name, quantizer in activations.items()},
    }


def check_costs(student, costs, images, outputs):
    """Checks costs against gates that are closed by hand, others at the most bits.

    Args:
        costs: costs that were measured.
        outputs: function of images that returns the outputs of the student that count.
    """
    space = student.bit_space
    quantizers = searched(space)
    margins = {key: quantizer.gates.margins() for key, quantizer in quantizers.items()}
    clips, closed = {}, {}
    # A few values: other ones have ranges that differ by a tenth.
    recalibrate = Recalibration(student, [images])
    read = read_activations(recalibrate, space.searched_activations(), [images])
    for (name, kind), quantizer in quantizers.items():
        layer = space.layers[name]
        if kind == 0:
            kernel = np.array(layer.latent_kernel)
            axes = tuple(range(kernel.ndim - 1))
            values = kernel / np.sqrt(np.square(kernel).mean(axis=axes, keepdims=True))
        else:
            values = read[name]
        signed = kind == 0 or quantizer.signed
        clips[name, kind] = best_clips(values, quantizer.candidates, signed)

    def choose(key, bits):
        quantizers[key].gates.freeze(bits)
        quantizers[key].clip.assign(clips[key][bits])

    for key, quantizer in quantizers.items():
        choose(key, quantizer.candidates[-1])
    reference = outputs(images)
    for key, quantizer in quantizers.items():
        damages = []
        for bits in quantizer.candidates:
            choose(key, bits)
            damages.append(np.square(outputs(images) - reference).mean())
        closed[key] = np.array(damages) * (ADAPTED if key[1] == 0 else 1)
    averted = {key: np.maximum(0, -np.diff(values)) for key, values in closed.items()}
    scale = np.median([values[0] for values in averted.values()])
    for key, values in averted.items():
        name, kind = key
        found = costs[("weights", "activations")[kind]][name]
        np.testing.assert_allclose(found, values / scale, rtol=0.1, atol=5e-3)
        bounded = np.minimum(decreasing(found), 7.6)  # the largest margin
        np.testing.assert_allclose(margins[key], bounded, rtol=1e-3, atol=1e-4)


def in_training(model):
    """Function that returns outputs on the statistics of the batch, by Keras itself."""

    def outputs(images):
        before = model.get_weights()
        values = np.array(model(images, training=True))
        model.set_weights(before)
        return values

    return outputs


@pytest.mark.parametrize("bits", [(2, 4, 8), (2, 3, 5)])
def test_costs_are_the_change_after_an_adaptation(trained, mnist, bits):
    student = tfc.compress(
        trained, tfc.BitSharing(penalty=1.0, weight_bits=bits, activation_bits=bits)
    )
    images = mnist[0][0][:200]
    *_, costs = measure(student, [images])
    with student.training_run.own_pass():
        check_costs(student, costs, images, in_training(student))


@pytest.mark.parametrize(
    "costs", [[], [2.0], [5.0, 1.0], [0.0, 5.0], [3.0, 0.0, 1.0, 4.0], [0.0, 0.0]]
)
def test_costs_that_increase_are_shared(costs):
    expected = isotonic_regression(costs, increasing=False).x if costs else []
    np.testing.assert_allclose(decreasing(costs), expected)


def test_bits_without_a_cost_hide_no_dear_ones(trained, mnist):
    """Closed gates hide later ones: here 2 bits cost as much as 3, and 4 far less."""
    student = tfc.compress(trained, tfc.BitSharing(penalty=1.0, weight_bits=(2, 3, 4)))
    images = mnist[0][0][:32]
    name, quantizer = next(iter(student.bit_space.searched_weights().items()))
    # Ranges that make 2 and 3 bits of one kernel round alike, to zeros.
    worst = {2: 1e6, 3: 1e6, 4: 3.0}
    quantizer.candidate_clips = lambda kernel: worst
    _, _, costs = measure(student, [images])
    first, second = costs["weights"][name]
    assert first == 0 < second
    margins = quantizer.gates.margins()
    assert margins[0] == pytest.approx(margins[1]) and margins[0] > 0


def test_margins_of_filters_rise_with_their_magnitudes(measured):
    student, space, images = measured
    for name, gate in space.filter_gates.items():
        kernel = np.abs(space.layers[name].latent_kernel.numpy())
        magnitudes = kernel.reshape(-1, kernel.shape[-1]).mean(axis=0)
        groups = magnitudes.reshape(-1, 2).mean(axis=1)
        margins = gate.margins()
        assert (np.diff(margins[np.argsort(groups)]) >= -1e-4).all()
        assert margins.min() > 0


@pytest.mark.parametrize(
    "batch_size", [pytest.param(1, marks=pytest.mark.slow), 8, 100]
)
def test_measurement_takes_about_as_long_as_fifty_steps(trained, mnist, batch_size):
    student = tfc.compress(trained, tfc.BitSharing(bops="1/50", group_size=2))
    batches = [mnist[0][0][i : i + batch_size] for i in range(0, 300, batch_size)]
    _, called, _ = measure(student, batches)
    fitting = 50 * 3 * batch_size // len(called)
    assert {len(x) for x in called} == {min(max(fitting, LEAST_SAMPLES), MOST_SAMPLES)}


def test_probabilities_count_as_their_logits(trained, mnist):
    images = mnist[0][0][:50]
    model = keras.Model(trained.inputs, keras.layers.Softmax()(trained.output))
    student = tfc.compress(model, tfc.BitSharing(bops="1/50", group_size=2))
    *_, costs = measure(student, [images])

    def logits(images):
        values = np.log(in_training(student)(images))
        return values - values.mean(axis=1, keepdims=True)

    with student.training_run.own_pass():
        check_costs(student, costs, images, logits)


def test_bits_at_which_outputs_overflow_are_the_dearest(trained, mnist):
    images = mnist[0][0][:50]
    student = tfc.compress(trained, tfc.BitSharing(bops="1/50", group_size=2))
    space, recalibrate = student.bit_space, Recalibration(student, [images])
    calibrate_activations(recalibrate)
    outputs, gates = recalibrate.outputs, space.searched_weights()["conv1"].gates
    scales = {2: np.inf}
    recalibrate.outputs = lambda x: outputs(x) * scales.get(gates.bits(), 1.0)
    costs = measure_sensitivities(student, space, recalibrate)
    values = np.concatenate(keras.tree.flatten(costs))
    assert np.isfinite(values).all()
    assert costs["weights"]["conv1"][0] == values.max() > 1e4
    margins = [x.gates.margins() for x in searched(space).values()]
    assert gates.margins()[0] == np.max(margins)


def test_dropout_does_not_count(trained, mnist):
    """Its numbers are the same in all passes, and stay those of the training."""
    images = mnist[0][0][:50]
    x = keras.layers.Dropout(0.5)(trained.output)
    student = tfc.compress(
        keras.Model(trained.inputs, x), tfc.BitSharing(bops="1/50", group_size=2)
    )
    measure(student, [images])
    for quantizer in searched(student.bit_space).values():
        quantizer.gates.freeze(8)
    recalibrate = Recalibration(student, [images])
    first, second = recalibrate.outputs(images), recalibrate.outputs(images)
    np.testing.assert_array_equal(first, second)
