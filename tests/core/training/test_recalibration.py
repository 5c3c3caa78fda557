"""Recalibration of batch normalization, by itself and in `fit`."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.core.training.data import take_inputs
from tfcompress.core.training.recalibration import Recalibration


def statistics(model):
    return [
        np.array(variable)
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def test_recalibration_averages_the_statistics_over_batches():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(inputs))
    norm = model.get_layer("bn")
    norm.moving_mean.assign([7.0, 7.0, 7.0])
    batches = np.random.default_rng(0).normal(2, 3, (5, 64, 3)).astype("float32")
    Recalibration(model, batches)()
    np.testing.assert_allclose(norm.moving_mean, batches.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        norm.moving_variance, batches.var(axis=1).mean(axis=0), rtol=1e-5
    )
    assert norm.momentum == 0.99


def test_recalibration_skips_frozen_batch_norm(trained, mnist):
    trained.get_layer("bn1").trainable = False
    before = np.array(trained.get_layer("bn1").moving_mean)
    Recalibration(trained, [mnist[0][0][:64]])()
    np.testing.assert_array_equal(trained.get_layer("bn1").moving_mean, before)
    assert trained.get_layer("bn0").momentum == 0.99


def test_validation_in_fit_sees_the_same_statistics_as_evaluate_after_it(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary())
    compile_for_digits(student, keras.optimizers.SGD(0.05))
    train, test = (tuple(part[:512] for part in split) for split in mnist)
    history = student.fit(*train, epochs=2, validation_data=test, verbose=0).history
    assert student.evaluate(*test, verbose=0)[1] == pytest.approx(
        history["val_accuracy"][-1]
    )
    before = statistics(student)
    Recalibration(student, take_inputs(train[0], 32)[0])()
    for old, new in zip(before, statistics(student), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)


def test_evaluate_outside_of_fit_keeps_the_statistics(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary())
    compile_for_digits(student)
    before = statistics(student)
    student.evaluate(mnist[1][0][:64], mnist[1][1][:64], verbose=0)
    for old, new in zip(before, statistics(student), strict=True):
        np.testing.assert_array_equal(old, new)
