"""Training that is killed and restored from a backup."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.backends.curves import SCHEMES, digits, small_net


class Killed(Exception):
    pass


class KillIn(keras.callbacks.Callback):
    """Raises `Killed` in the third step of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.here = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.here and batch == 2:
            raise Killed


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ternary", marks=pytest.mark.slow),  # each start
        pytest.param("bits", marks=pytest.mark.slow),  # traces again
        "ranks",
        "size",
    ],
)
def test_killed_training_ends_in_the_same_weights(name, compile_for_digits, tmp_path):
    images, labels = digits()

    def finished(*callbacks):
        keras.utils.set_random_seed(0)
        student = tfc.compress(small_net(), SCHEMES[name]())
        compile_for_digits(student, keras.optimizers.SGD(0.05, momentum=0.9))
        student.fit(
            images,
            labels,
            batch_size=64,
            epochs=4,
            shuffle=False,
            verbose=0,
            validation_data=(images[:64], labels[:64]),
            callbacks=list(callbacks),
        )
        return tfc.finalize(student)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    whole = finished()
    for epoch in (1, 3):  # in the search and after it
        with pytest.raises(Killed):
            finished(backup(), KillIn(epoch))
    again = finished(backup())
    for expected, received in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)
