"""Learned gates: values, gradients, thresholds and running averages."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfcompress.quantizers.gates import MOMENTUM, TEMPERATURE, BitGates, hard_gates
from tfcompress.quantizers.threshold import MAX_THRESHOLD, Threshold


def built(layer):
    layer.build()
    return layer


def gates_at(thresholds, errors=(1.0, 1.0), bits=(2, 4, 8)):
    gates = built(BitGates(bits))
    gates.threshold.raw.assign(thresholds)
    gates.errors.assign(errors)
    return gates


def gradient(function, variable):
    """d function() / d variable; zeros where TensorFlow has none."""
    with tf.GradientTape() as tape:
        value = function()
    zero = tf.UnconnectedGradients.ZERO
    return tape.gradient(value, variable.value, unconnected_gradients=zero).numpy()


def slope(margins):
    """Slope of the backward sigmoid."""
    soft = 1 / (1 + np.exp(-np.asarray(margins) / TEMPERATURE))
    return soft * (1 - soft) / TEMPERATURE


def test_hard_gates_are_steps_with_the_gradient_of_a_sigmoid():
    importances = tf.constant([0.0, 0.5, 1.0, 1.0, 3.0])
    thresholds = tf.constant([0.0, 0.6, 0.4, 1.0, 0.5])
    weights = np.array([1.0, -2.0, 3.0, 0.5, 4.0], "float32")
    with tf.GradientTape() as tape:
        tape.watch((importances, thresholds))
        gates = hard_gates(importances, thresholds)
        loss = tf.reduce_sum(weights * gates)
    to_importances, to_thresholds = tape.gradient(loss, (importances, thresholds))
    # A gate whose importance equals its threshold is closed.
    np.testing.assert_array_equal(gates, [0, 0, 1, 0, 1])
    expected = weights * slope(importances - thresholds)
    np.testing.assert_allclose(to_importances, expected, rtol=1e-5)
    np.testing.assert_allclose(to_thresholds, -expected, rtol=1e-5)


def test_set_pace_keeps_the_thresholds():
    threshold = built(Threshold(2))
    threshold.raw.assign([0.5, 1.5])
    for pace in (20.0, 0.1):
        threshold.set_pace(pace)
        np.testing.assert_allclose(threshold.value(), [0.5, 1.5], rtol=1e-6)
        np.testing.assert_allclose(threshold.raw, np.array([0.5, 1.5]) / pace)


def test_pace_multiplies_threshold_steps_and_not_gradients():
    threshold = built(Threshold(1))
    threshold.set_pace(5.0)
    found = gradient(lambda: ops.sum(3.0 * threshold.value()), threshold.raw)
    np.testing.assert_array_equal(found, [3.0])
    keras.optimizers.SGD(0.01).apply([tf.constant([-3.0])], [threshold.raw])
    np.testing.assert_allclose(threshold.value(), [0.01 * 3 * 5], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("pace", [0.5, 40.0])
@pytest.mark.parametrize("direction, bound", [(1.0, 0.0), (-1.0, MAX_THRESHOLD)])
def test_thresholds_stay_in_their_range(optimizer, pace, direction, bound):
    threshold = built(Threshold(2))
    threshold.set_pace(pace)
    optimizer = getattr(keras.optimizers, optimizer)(100.0)
    optimizer.apply([tf.constant([direction, 0.0])], [threshold.raw])
    np.testing.assert_allclose(threshold.value(), [bound, 0.0], rtol=1e-6)


def test_thresholds_that_do_not_learn_get_no_gradient():
    threshold = built(Threshold(2))
    threshold.learns.assign(0.0)
    found = gradient(lambda: ops.sum(threshold.value()), threshold.raw)
    np.testing.assert_array_equal(found, [0, 0])


# Errors are 1, so a gate with a threshold below 1 is open.
CHOICES = [((0.5, 0.5), 8), ((0.5, 1.5), 4), ((1.5, 0.5), 2), ((1.5, 1.5), 2)]


@pytest.mark.parametrize("thresholds, bits", CHOICES)
def test_expected_bits_and_their_gradient_follow_the_thresholds(thresholds, bits):
    gates = gates_at(thresholds)
    g4, g8 = np.float32(1.0) > thresholds
    assert float(gates.expected_bits()) == 2 + 2 * g4 + 4 * g4 * g8 == bits
    assert gates.bits() == bits and isinstance(gates.bits(), int)
    np.testing.assert_allclose(gates.margins(), 1 - np.array(thresholds), rtol=1e-6)
    found = gradient(gates.expected_bits, gates.threshold.raw)
    to_gates = np.array([2 + 4 * g8, 4 * g4])
    expected = -to_gates * slope(1 - np.array(thresholds))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("bits, hard", [(2, (0, 0)), (4, (1, 0)), (8, (1, 1))])
def test_freeze_sets_the_bits_and_ends_learning(bits, hard):
    gates = gates_at((1.5, 0.5))
    assert float(gates.learning()) == 1
    gates.freeze(bits)
    np.testing.assert_array_equal(gates.gates(), hard)
    assert gates.bits() == float(gates.expected_bits()) == bits
    assert float(gates.learning()) == 0
    gates.observe(ops.convert_to_tensor([7.0, 7.0]))
    np.testing.assert_array_equal(gates.errors, [1, 1])
    found = gradient(gates.expected_bits, gates.threshold.raw)
    np.testing.assert_array_equal(found, [0, 0])


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_freeze_refuses_bits_that_are_no_candidate(bits):
    gates = built(BitGates((2, 4, 8)))
    with pytest.raises(ValueError, match=rf"one of \(2, 4, 8\).*bits={bits}"):
        gates.freeze(bits)


def test_running_averages_change_only_while_gates_learn():
    gates = gates_at((0.0, 0.0), errors=(1.0, 0.4))
    gates.observe(ops.convert_to_tensor([2.0, 0.0]))
    moved = MOMENTUM * np.array([1.0, 0.4]) + (1 - MOMENTUM) * np.array([2.0, 0.0])
    np.testing.assert_allclose(gates.errors, moved, rtol=1e-6)
    gates.threshold.learns.assign(0.0)
    gates.observe(ops.convert_to_tensor([9.0, 9.0]))
    np.testing.assert_allclose(gates.errors, moved, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_gates_of_a_single_candidate_are_frozen_from_the_start(bits):
    gates = built(BitGates((bits,)))
    assert gates.threshold is None and not gates.trainable_variables
    assert gates.gates().shape == gates.margins().shape == gates.costs().shape == (0,)
    assert gates.bits() == float(gates.expected_bits()) == bits
    assert float(gates.learning()) == 0
    gates.freeze(bits)
    assert gates.bits() == bits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gates_compute_in_float32_inside_16_bit_layers(dtype):
    gates = gates_at((0.5, 1.5))
    layer = keras.layers.Lambda(
        lambda x: (gates.gates(), gates.expected_bits(), gates.threshold.value()),
        dtype=f"mixed_{dtype}",
    )
    assert [value.dtype for value in layer(np.ones(1))] == [tf.float32] * 3


@pytest.mark.parametrize("cost", [0.01, 0.3, 1.0, 3.0])
def test_margins_are_shares_of_the_cost_of_closing_a_gate(cost):
    """The whole cost at a threshold of zero, none where the gate is about to close."""
    gates = gates_at((0.0, 0.0), errors=(0.7, 0.2))
    gates.set_costs([cost, 2 * cost])
    importances = np.array(gates.importances())
    assert 0 < importances[0] < importances[1] < MAX_THRESHOLD
    np.testing.assert_allclose(gates.margins(), [cost, 2 * cost], rtol=1e-4)
    gates.threshold.raw.assign(importances / 2)
    np.testing.assert_allclose(gates.margins(), [cost / 2, cost], rtol=1e-4)
    np.testing.assert_allclose(gates.costs(), [cost, 2 * cost], rtol=1e-4)
    gates.threshold.raw.assign(importances)
    np.testing.assert_allclose(gates.margins(), 0, atol=1e-5)
    # Importances are proportional to errors.
    gates.errors.assign([0.35, 0.2])
    assert float(gates.importances()[0]) == pytest.approx(importances[0] / 2)
