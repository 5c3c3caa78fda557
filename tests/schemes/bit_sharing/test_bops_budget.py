"""Cost term: the gradient of strength * ln(BOPs), and gates that take turns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfcompress.layers import BopsBudget
from tfcompress.quantizers.gates import BitGates
from tfcompress.quantizers.threshold import Threshold


def connected(strength):
    """`(budget, gates)` with BOPs of 100 * the bits of the gates."""
    gates = BitGates((2, 4, 8))
    gates.build()
    budget = BopsBudget()
    budget.gates = gates  # a student's gates are parts of other layers
    budget.build((None, 3))
    budget.strength.assign(strength)
    budget.connect(lambda: 100.0 * gates.expected_bits(), ())
    return budget, gates


@pytest.mark.parametrize("strength", [0.0, 0.7, -0.2])
def test_cost_term_has_the_gradient_of_ln_bops_and_no_value(strength):
    budget, gates = connected(strength)
    x = np.ones((2, 3), "float32")
    with tf.GradientTape(persistent=True) as tape:
        outputs = budget(x, training=True)
        (loss,) = budget.losses
        bits = gates.expected_bits()
    np.testing.assert_array_equal(outputs, x)
    assert float(loss) == 0
    raw = gates.threshold.raw.value
    expected = strength * tape.gradient(bits, raw).numpy() / 8
    np.testing.assert_allclose(tape.gradient(loss, raw), expected, rtol=1e-6)
    assert not strength or (np.sign(expected) == -np.sign(strength)).all()


def test_budget_only_returns_its_input_in_inference_or_without_gates():
    budget, _ = connected(1.0)
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(budget(x, training=False), x)
    assert not budget.losses
    alone = BopsBudget()
    np.testing.assert_array_equal(alone(x, training=True), x)
    assert not alone.losses


def test_thresholds_learn_in_turns_of_training_calls():
    first, second = Threshold(1), Threshold(1)
    for threshold in (first, second):
        threshold.build()
    second.learns.assign(0.0)
    budget = BopsBudget()
    budget.connect(lambda: ops.ones(()), (first, second))
    x = np.ones((1, 3), "float32")
    turns = []
    for training in (True, False, True, True):
        budget(x, training=training)
        turns.append((float(first.learns), float(second.learns)))
    assert turns == [(0, 1), (0, 1), (1, 0), (0, 1)]
    assert not budget.trainable_variables


@pytest.mark.parametrize("jit_compile", [False, True])
def test_thresholds_move_in_every_second_training_step(jit_compile):
    budget, gates = connected(1.0)
    budget.connect(lambda: 100.0 * gates.expected_bits(), (gates.threshold,))
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(budget(inputs)))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    moved = []
    for _ in range(4):
        before = np.array(gates.threshold.raw)
        model.train_on_batch(x, y)
        moved.append(bool((np.array(gates.threshold.raw) > before).all()))
    # `learns` is 1 at first and changes before each step.
    assert moved == [False, True, False, True]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_cost_is_float32_under_mixed_precision(policy):
    budget, gates = connected(1e6)  # beyond float16
    budget.dtype_policy = policy
    budget.connect(lambda: 1e9 * gates.expected_bits(), ())
    budget(np.ones((2, 3), "float32"), training=True)
    (loss,) = budget.losses
    assert loss.dtype == tf.float32 and float(loss) == 0


def test_bops_budget_config_round_trip():
    config = keras.saving.serialize_keras_object(BopsBudget(name="budget"))
    assert keras.saving.deserialize_keras_object(config).name == "budget"
