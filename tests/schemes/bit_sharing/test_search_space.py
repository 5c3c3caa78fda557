"""Connections and state of the gates of a student."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.backends.curves import digits, small_net
from tfcompress.schemes.bit_sharing.search_space import SearchSpace


def trained_for_two_steps(connections):
    """A student that learns under a penalty, connected so many times."""
    keras.utils.set_random_seed(0)
    student = tfc.compress(small_net(), tfc.BitSharing(bops="1/30", group_size=1))
    for _ in range(connections - 1):
        student.scheme.connect(student)
    SearchSpace(student).budget.strength.assign(1.0)
    student.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    images, labels = digits()
    student.training_run.trainer = student  # as in a loop with its callbacks
    for _ in range(2):
        student.train_on_batch(images[:32], labels[:32])
    return student


def test_connecting_a_student_again_changes_nothing():
    once, twice = map(trained_for_two_steps, (1, 2))
    # Two steps move both kinds of gates, as they learn in turns.
    assert all(np.any(x.raw) for x in SearchSpace(once).thresholds())
    for expected, received in zip(once.variables, twice.variables, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_space_is_frozen_once_all_bits_and_filters_are(bits):
    student = tfc.compress(small_net(), tfc.BitSharing(penalty=0.0))
    space = SearchSpace(student)
    gates = [x for x in space.bit_gates() if x.threshold is not None]
    assert len(gates) == len(space.thresholds()) - len(space.filter_gates) == 2
    for x in gates:
        assert not space.is_frozen()
        x.freeze(bits)
    for gate in space.filter_gates.values():
        assert not space.is_frozen()
        gate.freeze(np.ones(gate.group_count, bool))
    assert space.is_frozen() and SearchSpace(student).is_frozen()
