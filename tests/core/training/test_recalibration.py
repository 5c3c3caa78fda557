import keras
import numpy as np
import pytest
import tensorflow as tf
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


def test_statistics_are_the_mean_over_the_batches():
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


def test_frozen_statistics_stay(trained, mnist):
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


def test_evaluate_outside_fit_changes_nothing(trained, mnist, compile_for_digits):
    student = tfc.compress(trained, tfc.PrunedTernary())
    compile_for_digits(student)
    before = statistics(student)
    student.evaluate(mnist[1][0][:64], mnist[1][1][:64], verbose=0)
    for old, new in zip(before, statistics(student), strict=True):
        np.testing.assert_array_equal(old, new)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return np.full((4, 2), index), np.zeros(4)


X = np.repeat(np.arange(100.0), 2).reshape(100, 2)


def generator():
    for start in range(0, 100, 4):
        yield X[start : start + 4], np.zeros(4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: X,
        lambda: {"a": X, "b": [X]},
        lambda: tf.data.Dataset.from_tensor_slices((X, X)).batch(4),
        Batches,
        generator,
    ],
    ids=["array", "structure", "tf.data", "PyDataset", "generator"],
)
def test_inputs_of_every_kind_of_data(make):
    data = make()
    batches, rest = take_inputs(data, batch_size=4, samples=20)
    sizes = [keras.tree.flatten(batch)[0].shape for batch in batches]
    assert sizes == [(4, 2)] * 5
    if data is X:
        assert np.concatenate(batches)[[0, -1], 0].tolist() == [0, 99]  # spread out
        held_out, _ = take_inputs(data, 4, validation_split=0.5, samples=20)
        assert np.concatenate(held_out).max() <= 49
    if hasattr(data, "__next__"):
        np.testing.assert_array_equal(np.concatenate([x for x, _ in rest]), X)
    else:
        assert rest is data
