"""Training on two replicas, of all variables that a scheme has."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.backends.curves import SCHEMES, digits, small_net


def trained(scheme, data, strategy=None):
    """`(student, losses, variables)`, the last two after each epoch."""
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([np.array(x) for x in self.model.variables])

    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        # Without batch normalization: half a batch has other statistics.
        student = tfc.compress(small_net(batch_norm=False), scheme())
        student.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,  # XLA does not reach two CPUs, whatever the model
        )
    history = student.fit(
        data, epochs=2, verbose=0, shuffle=False, callbacks=[Record()]
    )
    return student, history.history["loss"], seen


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] * (x != "size")) for x in SCHEMES],
)
def test_two_replicas_train_the_variables_that_one_does(name, two_replicas):
    data = tf.data.Dataset.from_tensor_slices(digits()).take(256).batch(64)
    one, losses, seen = trained(SCHEMES[name], data)
    two, losses_of_two, seen_of_two = trained(SCHEMES[name], data, two_replicas)

    np.testing.assert_allclose(losses_of_two, losses, rtol=1e-5)
    for variables, variables_of_two in zip(seen, seen_of_two, strict=True):
        for a, b, x in zip(variables, variables_of_two, two.variables, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-5, err_msg=x.path)
    for variable in two.variables:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)
    kernels, kernels_of_two = (
        {x.path: np.array(x) for x in tfc.finalize(student).weights}
        for student in (one, two)
    )
    assert kernels.keys() == kernels_of_two.keys()
    for path, kernel in kernels.items():
        np.testing.assert_allclose(kernels_of_two[path], kernel, atol=1e-5)


def test_batch_with_an_example_for_one_replica_alone_leaves_no_nan(two_replicas):
    if (
        tf.nn.conv2d(tf.zeros((0, 2, 2, 1)), tf.zeros((1, 1, 1, 3)), 1, "SAME").shape[
            -1
        ]
        != 3
    ):
        pytest.skip("TensorFlow's convolutions fail without examples on this processor")
    data = tf.data.Dataset.from_tensor_slices(digits()).take(65).batch(64)
    student, losses, _ = trained(SCHEMES["bits"], data, two_replicas)
    assert np.isfinite(losses).all()
    for variable in student.variables:
        assert np.isfinite(variable).all(), variable.path
