"""Keras still has, and calls, what is replaced for several machines."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow import trainer

from tfcompress.compat import keras_tensorflow_private


@pytest.fixture
def patched(monkeypatch):
    """Both functions are replaced, until the end of the test."""
    for owner, name in (
        (trainer, "reduce_per_replica"),
        (trainer.TensorFlowTrainer, "_maybe_symbolic_build"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    keras_tensorflow_private.patch_multi_worker_fit()


def _model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def test_replaced_functions_take_the_same_arguments():
    reduce = inspect.signature(trainer.reduce_per_replica)
    assert list(reduce.parameters) == ["values", "strategy", "reduction"]
    build = inspect.signature(trainer.TensorFlowTrainer._maybe_symbolic_build)
    assert list(build.parameters) == ["self", "iterator", "data_batch"]


def test_fit_on_two_replicas_reduces_and_builds_by_the_replacements(
    patched, two_replicas, monkeypatch
):
    reductions, batches = [], []
    reduce, build = trainer.reduce_per_replica, keras.Model._symbolic_build

    def spy_on_reduce(values, strategy, reduction):
        reductions.append(reduction)
        return reduce(values, strategy, reduction)

    def spy_on_build(model, iterator=None, data_batch=None):
        batches.append(np.array(data_batch[0]))
        return build(model, iterator, data_batch)

    monkeypatch.setattr(trainer, "reduce_per_replica", spy_on_reduce)
    monkeypatch.setattr(keras.Model, "_symbolic_build", spy_on_build)
    with two_replicas.scope():
        model = _model()
    assert model._distribute_strategy is two_replicas
    x, y = np.arange(24, dtype="float32").reshape(8, 3), np.ones((8, 2), "float32")
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    assert set(reductions) == {"auto"}
    (batch,) = batches
    np.testing.assert_array_equal(batch, x[:4])  # of one replica, no mean of both
    assert np.isfinite([history["loss"], history["mae"]]).all()


def test_auto_reduction_returns_the_value_of_the_first_replica(patched, two_replicas):
    values = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(3.0 + context.replica_id_in_sync_group)
    )
    assert trainer.reduce_per_replica(values, two_replicas, "auto") == 3
    assert trainer.reduce_per_replica(values, two_replicas, "sum") == 3 + 4


def test_model_without_a_strategy_is_not_built_before_its_first_step(patched):
    model = _model()
    assert model._distribute_strategy is None
    model._maybe_symbolic_build(data_batch=(np.ones((1, 3)), np.ones((1, 2))))
    assert not model.optimizer.built


def test_patching_twice_wraps_once(patched):
    once = trainer.reduce_per_replica
    keras_tensorflow_private.patch_multi_worker_fit()
    assert trainer.reduce_per_replica is once
