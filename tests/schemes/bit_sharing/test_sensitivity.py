"""Importances of gates against the change of the outputs, closed one by one."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.core.training.calibration import calibrate_activations
from tfcompress.schemes.bit_sharing.search_space import SearchSpace
from tfcompress.schemes.bit_sharing.sensitivity import (
    LEAST_SAMPLES,
    MOST_SAMPLES,
    measure_sensitivities,
)


@pytest.fixture
def measured(trained, mnist):
    """`(student, space, images)` with measured sensitivities."""
    images = mnist[0][0][:300]
    student = tfc.compress(trained, tfc.BitSharing(bops="1/50", group_size=2))
    calibrate_activations(student, [images])
    space = SearchSpace(student)
    before = [np.array(v) for v in student.trainable_variables]
    measure_sensitivities(student, space, [images[:200], images[200:]])
    for value, variable in zip(before, student.trainable_variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    assert not space.is_frozen()
    return student, space, images[:MOST_SAMPLES]


def searched_gates(space):
    return {
        (name, i): quantizer.gates
        for name, layer in space.layers.items()
        for i, quantizer in enumerate((layer.kernel_quantizer, layer.input_quantizer))
        if quantizer.gates.threshold is not None
    }


def check_margins(outputs, gates):
    """Checks margins against gates that are closed by hand, others at 8 bits.

    Args:
        outputs: function that returns the outputs of the student, of few samples.
        gates: result of `searched_gates`.
    """
    margins = {key: gate.margins() for key, gate in gates.items()}
    for gate in gates.values():
        gate.freeze(8)
    reference = outputs()
    damages = {}
    for key, gate in gates.items():
        at = {}
        for bits in (2, 4, 8):
            gate.freeze(bits)
            at[bits] = np.square(outputs() - reference).mean()
        damages[key] = [max(0, at[2] - at[4]), max(0, at[4] - at[8])]
    scale = np.median([lowest for lowest, _ in damages.values()])
    for key, damage in damages.items():
        expected = np.minimum(np.array(damage) / scale, 7.6)  # the largest margin
        np.testing.assert_allclose(margins[key], expected, rtol=2e-3, atol=1e-4)


def test_margins_of_open_gates_are_the_change_of_the_outputs(measured):
    student, space, images = measured
    check_margins(lambda: np.array(student(images)), searched_gates(space))


def test_margins_of_filters_rise_with_their_magnitudes(measured):
    student, space, images = measured
    for name, gate in space.filter_gates.items():
        kernel = np.abs(space.layers[name].latent_kernel.numpy())
        magnitudes = kernel.reshape(-1, kernel.shape[-1]).mean(axis=0)
        groups = magnitudes.reshape(-1, 2).mean(axis=1)
        margins = gate.margins()
        assert (np.diff(margins[np.argsort(groups)]) >= -1e-4).all()
        assert margins.min() > 0


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_measurement_takes_about_as_long_as_fifty_steps(
    trained, mnist, monkeypatch, batch_size
):
    student = tfc.compress(trained, tfc.BitSharing(bops="1/50", group_size=2))
    sizes = []
    predict = student.predict_on_batch
    monkeypatch.setattr(
        student, "predict_on_batch", lambda x: sizes.append(len(x)) or predict(x)
    )
    batches = [mnist[0][0][i : i + batch_size] for i in range(0, 300, batch_size)]
    measure_sensitivities(student, SearchSpace(student), batches)
    fitting = 50 * 3 * batch_size // len(sizes)
    assert set(sizes) == {min(max(fitting, LEAST_SAMPLES), MOST_SAMPLES)}


def test_probabilities_count_as_their_logits(trained, mnist):
    images = mnist[0][0][:50]
    model = keras.Model(trained.inputs, keras.layers.Softmax()(trained.output))
    student = tfc.compress(model, tfc.BitSharing(bops="1/50", group_size=2))
    calibrate_activations(student, [images])
    space = SearchSpace(student)
    measure_sensitivities(student, space, [images])
    before_softmax = keras.Model(student.inputs, student.layers[-1].input)

    def outputs():
        logits = before_softmax.predict(images, verbose=0)
        return logits - logits.mean(axis=1, keepdims=True)

    check_margins(outputs, searched_gates(space))
