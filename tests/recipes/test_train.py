"""Learning rate, precision and resumption of the recipes' training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes.common import models, train


@pytest.mark.parametrize("weight_decay, norm", [(1e-3, 1.0), (None, None)])
def test_gradients_of_float_trainings_are_clipped(weight_decay, norm):
    optimizer = train.make_optimizer(0.1, steps=10, weight_decay=weight_decay)
    assert optimizer.global_clipnorm == norm


def test_learning_rate_warms_up_and_decays_to_zero():
    optimizer = train.make_optimizer(0.1, steps=200)
    schedule = keras.optimizers.schedules.deserialize(
        optimizer.get_config()["learning_rate"]
    )
    rates = np.array([schedule(step) for step in range(201)])
    assert rates[0] == 0
    assert rates.argmax() == 10
    assert rates[10] == pytest.approx(0.1)
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[105] == pytest.approx(0.05)
    assert rates[200] == pytest.approx(0, abs=1e-8)


def test_weight_decay_spares_biases_and_normalization():
    model = models.resnet8((28, 28, 1), 10)
    optimizer = train.make_optimizer(0.1, steps=10, weight_decay=1e-3)
    optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        decayed = optimizer._use_weight_decay(variable)
        assert decayed == (variable.name == "kernel"), variable.path


def _nested():
    inner = models.resnet8((28, 28, 1), 10)
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, keras.layers.Dense(10, name="last")(inner(inputs)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_set_precision_to_a_mixed_policy_and_back_restores_the_outputs(policy):
    model = _nested()
    images = np.random.default_rng(0).normal(size=(8, 28, 28, 1)).astype("float32")
    before = np.asarray(model(images))
    train.set_precision(model, policy)
    convolution = model.layers[1].get_layer("stem_conv")
    assert convolution.compute_dtype == policy.removeprefix("mixed_")
    assert convolution(images).dtype == policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in model.weights)
    low = model(images)
    assert low.dtype == "float32"
    assert np.abs(low - before).max() > 0
    np.testing.assert_allclose(low, before, atol=0.05 * np.abs(before).max())
    train.set_precision(model, "float32")
    np.testing.assert_array_equal(model(images), before)


def test_mixed_float16_scales_the_loss(tmp_path):
    model = models.lenet5((28, 28, 1), 10)
    images = np.random.default_rng(0).normal(size=(32, 28, 28, 1)).astype("float32")
    test = images, np.arange(32) % 10
    train.fit(
        model,
        tf.data.Dataset.from_tensors(test),
        test,
        epochs=1,
        learning_rate=0.01,
        from_logits=True,
        precision="mixed_float16",
        backup_dir=tmp_path,
    )
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_accuracy_is_a_fraction():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert train.accuracy(outputs, np.array([1, 0, 0, 0])) == 0.75


def test_unfinished_run_keeps_its_backups_only_with_equal_settings(tmp_path):
    folder = tmp_path / "unfinished_run"
    state = folder / "float" / "state"
    first = train.UnfinishedRun(folder, {"epochs": 2, "sparsity": None})
    assert first.backup_dir("float") == state.parent
    state.parent.mkdir()
    state.touch()
    train.UnfinishedRun(folder, {"epochs": 2, "sparsity": None})
    assert state.exists()
    other = train.UnfinishedRun(folder, {"epochs": 3, "sparsity": None})
    assert not state.exists()
    other.finish()
    assert not folder.exists()
