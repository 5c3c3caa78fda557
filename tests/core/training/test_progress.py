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
    np.testing.assert_allclose(sorted(set(shares.shares)), expected)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_progress_counts_epochs_if_the_number_of_batches_is_unknown(model):
    shares = Shares()
    data = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.ones((4, 1))))
    data = data.repeat(3).filter(lambda x, y: True)  # its length is unknown
    model.fit(data, epochs=2, shuffle=False, callbacks=[shares], verbose=0)
    assert shares.shares == [0.0, 0.5]


def test_progress_is_reported_about_a_hundred_times_at_most(model):
    shares = Shares()
    x, y = np.ones((500, 2)), np.ones((500, 1))
    model.fit(x, y, batch_size=1, epochs=1, callbacks=[shares], verbose=0)
    assert len(shares.shares) == 100
    assert max(shares.shares) < 1
