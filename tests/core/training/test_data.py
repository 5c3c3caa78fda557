"""Samples of the training data, from every kind of data that `fit` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.core.training.data import take_inputs


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
def test_take_inputs_reads_every_kind_of_data_and_keeps_it_whole(make):
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
