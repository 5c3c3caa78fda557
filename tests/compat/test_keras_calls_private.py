"""Private APIs of Keras for the calls of layers still exist and mean the same."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.compat import keras_private


def test_mask_of_a_tensor_is_that_of_its_layer():
    ids = np.array([[1, 2, 0]])
    mask = keras_private.mask_of(layers.Embedding(5, 4, mask_zero=True)(ids))
    np.testing.assert_array_equal(mask, ids != 0)
    assert keras_private.mask_of(layers.Embedding(5, 4)(ids)) is None


def test_set_mask_is_read_by_later_layers():
    x = np.array([[[1.0], [5.0]]], "float32")
    tensor = ops.convert_to_tensor(x)
    mean = layers.GlobalAveragePooling1D()
    np.testing.assert_allclose(mean(tensor), [[3.0]])
    keras_private.set_mask(tensor, ops.convert_to_tensor([[True, False]]))
    np.testing.assert_allclose(mean(tensor), [[1.0]])
    inputs = keras.Input((2, 1))
    keras_private.set_mask(inputs, keras.Input((2,), dtype="bool"))
    assert keras_private.mask_of(layers.Dense(2)(inputs)) is keras_private.mask_of(
        inputs
    )


def test_stateless_scope_is_the_innermost_one():
    assert keras_private.stateless_scope() is None
    with keras.StatelessScope() as outer:
        with keras.StatelessScope() as inner:
            assert keras_private.stateless_scope() is inner
        assert keras_private.stateless_scope() is outer


class Twice(layers.Layer):
    """Layer of sublayers, one of which has an argument `training`."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop = layers.Dense(2), layers.Dropout(0.5)

    def call(self, x):
        return self.drop(self.dense(x))


@pytest.mark.parametrize("training", [True, False])
def test_traced_calls_of_sublayers_are_recorded_and_forgotten(training):
    twice = Twice()
    x = keras.Input((2,))
    model = keras.Model(x, twice(x))
    parts = keras_private.flatten_layers(model)
    before = [(list(p._inbound_nodes), list(p._outbound_nodes)) for p in parts]
    inputs = keras.Input((2,))
    assert not keras_private.is_training({})
    with keras_private.tracing(twice, training):
        assert keras_private.is_training({}) is training
        traced = keras.Model(inputs, twice.call(inputs))
    assert not keras_private.is_training({})
    assert before == [(p._inbound_nodes, p._outbound_nodes) for p in parts]
    modes = []

    def record(operation):
        def call(*args, **kwargs):
            modes.append((operation, kwargs.get("training")))
            return operation.compute_output_spec(*args, **kwargs)

        return call

    keras_private.run_through_graph(traced, traced.inputs, record)
    assert modes == [(twice.dense, training), (twice.drop, training)]


class Inner(layers.Layer):
    """Layer without an argument `training`."""

    def __call__(self, *args, **kwargs):
        self.seen = keras_private.is_training(kwargs)
        return super().__call__(*args, **kwargs)

    def call(self, inputs):
        return inputs


def test_layers_know_whether_they_are_called_in_training():
    inner = Inner()
    inputs = keras.Input((2,))
    part = keras.Model(inputs, layers.Dropout(0.5)(inner(inputs)))
    assert inner.seen is False
    outer = keras.Sequential([keras.Input((2,)), part])
    x = np.ones((4, 2), "float32")
    for training in (True, None, False):
        outer(x, training=training)
        assert inner.seen is (training is True)
    outer.compile("sgd", "mse")
    outer.predict(x, verbose=0)
    assert inner.seen is False
    outer.fit(x, x, verbose=0)
    assert inner.seen is True
    inner(x)
    assert inner.seen is False
