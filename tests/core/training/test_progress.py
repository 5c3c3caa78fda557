"""Progress of a training, as a callback reports it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.core.training.progress import ProgressCallback


class Shares(ProgressCallback):
    """Records the reported shares."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def on_progress(self, share):
        self.shares.append(share)


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_progress_counts_batches_if_their_number_is_known(model):
    shares = Shares()
    x, y = np.ones((16, 2)), np.ones((16, 1))
    model.fit(x, y, batch_size=4, epochs=2, callbacks=[shares], verbose=0)
    expected = [epoch / 2 + batch / 8 for epoch in range(2) for batch in range(4)]
    np.testing.assert_allclose(sorted(set(shares.shares)), [*expected, 1.0])


@pytest.fixture
def data_of_unknown_length():
    data = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.ones((4, 1))))
    return data.repeat(4).filter(lambda x, y: True)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_progress_counts_the_batches_of_a_first_epoch_of_unknown_length(
    model, data_of_unknown_length
):
    shares = Shares()
    model.fit(
        data_of_unknown_length, epochs=3, shuffle=False, callbacks=[shares], verbose=0
    )
    expected = [0.0] + [
        epoch / 3 + batch / 12 for epoch in (1, 2) for batch in range(4)
    ]
    np.testing.assert_allclose(sorted(set(shares.shares)), [*expected, 1.0])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_progress_takes_the_length_that_was_counted_before(
    model, data_of_unknown_length
):
    shares = Shares()
    model.counted_steps = 4
    model.fit(data_of_unknown_length, shuffle=False, callbacks=[shares], verbose=0)
    assert shares.shares == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_progress_takes_steps_per_epoch(model, data_of_unknown_length):
    shares = Shares()
    model.fit(
        data_of_unknown_length.repeat(),
        steps_per_epoch=2,
        shuffle=False,
        callbacks=[shares],
        verbose=0,
    )
    assert shares.shares == [0.0, 0.5, 1.0]


def test_progress_of_a_training_that_is_stopped_does_not_come_to_its_end(model):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    shares = Shares()
    x, y = np.ones((8, 2)), np.ones((8, 1))
    model.fit(x, y, batch_size=4, callbacks=[shares, Stop()], verbose=0)
    assert shares.shares == [0.0]


def test_progress_is_reported_about_a_hundred_times_at_most(model):
    shares = Shares()
    x, y = np.ones((500, 2)), np.ones((500, 1))
    model.fit(x, y, batch_size=1, epochs=1, callbacks=[shares], verbose=0)
    assert len(shares.shares) == 101  # with that of the end
    assert max(shares.shares[:-1]) < 1
