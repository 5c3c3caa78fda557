"""Training that is killed and restored from a backup.

Every scheme, with every kind of budget, is killed in every phase.
"""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.core.training import data

SCHEMES = {
    "sparsity": lambda: tfc.PrunedTernary(sparsity=0.8, first_last="ternary"),
    "cosine": lambda: tfc.PrunedTernary(discrepancy=0.1, first_last="8bit"),
    "bops": lambda: tfc.BitSharing(bops="1/30", search_fraction=0.6),
    "gates": lambda: tfc.BitSharing(penalty=0.5, search_fraction=0.6),
    "macs": lambda: tfc.Decomposition(macs="1/2", search_fraction=0.6),
    "params": lambda: tfc.Decomposition(params="1/2", search_fraction=0.6),
    "groups": lambda: tfc.Decomposition(penalty=0.5, search_fraction=0.6),
    "int8": lambda: tfc.Decomposition("1/2", search_fraction=0.6, activation_bits=8),
    "value_bits": lambda: _sized(value_bits="1/20"),
    "admm": lambda: _sized(value_bits="1/300"),
    "kmeans": lambda: _sized(size="3700 B", codebook="kmeans"),
    "xz": lambda: _sized(size="3800 B"),
    "bytes": lambda: _sized(size="8 kB", compression="none"),
    "whole": lambda: _sized(size="3800 B", search_fraction=1.0),
    "bits_whole": lambda: tfc.BitSharing(bops="1/30", search_fraction=1.0),
    "uniform": lambda: tfc.Uniform(4, 4),
}
EPOCHS = 5
# Epochs in whose second step a training is killed: ramp or ADMM, descent, and twice
# after the search. `EPOCHS` stands for a kill between the last epoch and the end.
KILLS = (1, 2, 4, EPOCHS)


def _sized(search_fraction=0.6, **budget):
    return tfc.SizeConstrained(search_fraction=search_fraction, **budget)


def tiny_net():
    """With dropout: its random numbers are a part of the state."""
    inputs = x = keras.Input((8, 8, 1))
    for i, filters in enumerate((8, 24, 24)):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{i}")(x)
        x = layers.BatchNormalization(name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def batches():
    rng = np.random.default_rng(0)
    labels = np.arange(192) % 4
    images = rng.normal(size=(192, 8, 8, 1)) + labels[:, None, None, None]
    return images.astype("float32"), labels


class Killed(Exception):
    pass


class KillIn(keras.callbacks.Callback):
    """Raises `Killed` in the second step of an epoch, or before the end."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.here = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.here == self.epoch and batch == 1:
            self.kill()

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch == EPOCHS:
            self.kill()

    def kill(self):
        raise Killed


class SigKillIn(KillIn):
    """Ends the process as a power cut does."""

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)


class ChangeRate(keras.callbacks.Callback):
    """Lowers the learning rate in small steps, which a search follows in the end."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.05 * 0.75**epoch


class Logs(keras.callbacks.Callback):
    """The logs of each epoch, of losses and of the scheme's measurements."""

    def __init__(self):
        super().__init__()
        self.by_epoch = {}

    def on_epoch_end(self, epoch, logs=None):
        self.by_epoch[epoch] = dict(logs)


def train(name, *callbacks):
    """Trains a student with a scheme, and returns the finished model."""
    keras.utils.clear_session(free_memory=False)  # as in a process of its own
    keras.utils.set_random_seed(0)
    student = tfc.compress(tiny_net(), SCHEMES[name]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    fit(student, *callbacks)
    return tfc.finalize(student)


def fit(student, *callbacks, **options):
    images, labels = batches()
    student.fit(
        images,
        labels,
        batch_size=32,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=(images[:32], labels[:32]),
        callbacks=[ChangeRate(), *callbacks],
        **options,
    )


def backup(folder):
    return keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)


SIZED = ("value_bits", "xz", "bytes", "bops")
SLOW = {"cosine", "gates", "params", "groups", "value_bits", "kmeans", "bytes"}
SLOW |= {"whole", "bits_whole", "bops", "admm", "macs", "uniform", "xz", "int8"}


@pytest.mark.filterwarnings("ignore:The search ended", "ignore:The student")
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in SCHEMES]
)
def test_training_that_is_killed_in_every_phase_ends_in_the_same_weights(
    name, tmp_path
):
    expected_logs, logs = Logs(), Logs()
    whole = train(name, expected_logs)
    for epoch in KILLS:
        with pytest.raises(Killed):
            train(name, logs, backup(tmp_path), KillIn(epoch))
    again = train(name, backup(tmp_path))
    assert logs.by_epoch == expected_logs.by_epoch
    for expected, received in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


def of_unknown_length():
    """More batches than are read before a training, which then tells of no length."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.normal(size=(70 * 32, 8)).astype("float32")
    labels = (images[:, 0] > 0).astype("int32")

    def generate():
        for start in range(0, len(images), 32):
            yield images[start : start + 32], labels[start : start + 32]

    kinds = {np.dtype("float32"): (None, 8), np.dtype("int32"): (None,)}
    return tf.data.Dataset.from_generator(
        generate,
        output_signature=tuple(tf.TensorSpec(y, x) for x, y in kinds.items()),
    )


@pytest.mark.parametrize(
    "name", [pytest.param("sparsity", marks=pytest.mark.slow), "value_bits"]
)
def test_killed_training_on_data_of_unknown_length_ends_in_the_same_weights(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "READ_FACTOR", 1)

    def finished(*callbacks):
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input((8,))
        for units in (32, 32, 2):
            x = layers.Dense(units)(x)
        student = tfc.compress(keras.Model(inputs, x), SCHEMES[name]())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        student.compile(keras.optimizers.SGD(0.01), loss)
        student.fit(of_unknown_length(), epochs=4, verbose=0, callbacks=list(callbacks))
        assert student.counted_steps in (None, 70)
        return student

    whole = finished()
    with pytest.raises(Killed):
        finished(backup(tmp_path), KillIn(2))
    again = finished(backup(tmp_path))
    for expected, received in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


class KeepOptimizer(keras.callbacks.Callback):
    """Values of the optimizer's variables after the second epoch, by their paths."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            variables = self.model.optimizer.variables
            self.values = {variable.path: np.array(variable) for variable in variables}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["sparsity", "macs", *SIZED],
)
def test_whole_model_that_is_saved_in_a_search_goes_on_with_its_optimizer(
    name, tmp_path
):
    keep = KeepOptimizer()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = train(name, save, keep)
    student = keras.models.load_model(tmp_path / "2.keras")
    for variable in student.optimizer.variables:
        np.testing.assert_array_equal(variable, keep.values.pop(variable.path))
    # Parameters of proximal steps, which the search sets again.
    assert {path.split("/")[-1] for path in keep.values} <= {
        "shrinkage",
        "rho",
        "anchor",
    }
    fit(student, initial_epoch=2)
    for expected, received in zip(
        whole.weights, tfc.finalize(student).weights, strict=True
    ):
        np.testing.assert_array_equal(received, expected, err_msg=expected.path)


def start(name, folder, epoch):
    """Trains in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", __name__, name, str(folder), str(epoch)]
    return subprocess.run(
        command, env={**os.environ, "TF_DETERMINISTIC_OPS": "1"}
    ).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparsity", "bops", "xz"])
def test_process_that_is_killed_in_every_phase_exports_the_same_bytes(name, tmp_path):
    assert start(name, tmp_path / "whole", 99) == 0
    for epoch in KILLS:
        assert start(name, tmp_path / "killed", epoch) == -signal.SIGKILL
    assert start(name, tmp_path / "killed", 99) == 0
    whole, again = (
        (tmp_path / folder / "model.tflite").read_bytes()
        for folder in ("whole", "killed")
    )
    assert again == whole


if __name__ == "__main__":
    _, scheme, folder, epoch = sys.argv
    tiny = train(scheme, backup(folder), SigKillIn(int(epoch)))
    tfc.export(tiny, f"{folder}/model.tflite")
