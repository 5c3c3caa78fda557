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


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """Layer that owns a BatchNormalization, within a model within a list."""

    def build(self, shape):
        norm = layers.BatchNormalization(name="inner")
        self.parts = [keras.Sequential([keras.Input(shape[1:]), norm])]

    def call(self, inputs, training=None):
        return self.parts[0](inputs, training=training)


def test_recalibration_reaches_batch_norm_within_custom_layers_and_nested_models():
    inner = keras.Sequential([keras.Input((3,)), Block(), Block()])
    inputs = keras.Input((3,))
    outputs = layers.TimeDistributed(layers.BatchNormalization())(
        layers.Reshape((3, 1))(inner(inputs))
    )
    model = keras.Model(inputs, layers.Flatten()(outputs))
    x = np.random.default_rng(0).normal(5, 2, (64, 3)).astype("float32")
    Recalibration(model, [x])()
    np.testing.assert_allclose(model.predict(x, verbose=0).std(0), np.ones(3), rtol=0.1)


def test_recalibration_changes_no_other_variable_and_no_random_numbers(mnist):
    images = mnist[0][0][:64]
    inputs = x = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 3, strides=3, name="first")(x)
    x = layers.Dropout(0.5, name="dropout")(layers.BatchNormalization(name="bn0")(x))
    x = layers.Conv2D(8, 3, strides=3, name="middle")(x)
    x = layers.Flatten()(layers.BatchNormalization(name="bn1")(x))
    model = keras.Model(inputs, layers.Dense(10)(x))
    student = tfc.compress(model, tfc.BitSharing(bops="1/25"))
    before = {x.path: np.array(x) for x in student.variables}
    Recalibration(student, [images[:32], images[32:]])()
    changed = {
        variable.path.split("/")[-2:][0]
        for variable in student.variables
        if not np.array_equal(before[variable.path], variable)
    }
    assert changed == {"bn0", "bn1"}


def test_recalibration_draws_other_random_numbers_for_each_batch():
    inputs = keras.Input((50,))
    x = layers.BatchNormalization(name="bn")(layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, x)
    Recalibration(model, [np.ones((1, 50), "float32")] * 100)()
    # One draw for all batches would leave zeros and twos.
    np.testing.assert_allclose(model.get_layer("bn").moving_mean, 1.0, atol=0.5)


def test_recalibration_of_sorted_data_sees_the_classes_mixed():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(inputs))
    x = np.repeat(np.arange(64.0), 32)[:, None] * np.ones(3)
    Recalibration(model, take_inputs(x, 32).batches)()
    np.testing.assert_allclose(
        model.get_layer("bn").moving_variance, x.var(0), rtol=0.01
    )
