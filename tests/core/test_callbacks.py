"""Callbacks of Keras and of users, with every scheme: a table of callbacks x schemes.

A training with any of them ends with all that the scheme was asked for.
"""

import csv
import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.core.training.recalibration import Recalibration

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.9),
    "bits": lambda: tfc.BitSharing(bops="1/40"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
}
COSTS = {"bits": "bops", "size": "value_bits", "ranks": "macs"}
EPOCHS, BATCH, SAMPLES = 4, 32, 192
RATE = 0.02

each_scheme = pytest.mark.parametrize("name", SCHEMES)


@pytest.fixture
def new_student(trained, compile_for_digits):
    def compress(name, optimizer=None, **arguments):
        student = tfc.compress(trained, SCHEMES[name]())
        optimizer = optimizer or keras.optimizers.SGD(RATE, momentum=0.9)
        compile_for_digits(student, optimizer, **arguments)
        return student

    return compress


@pytest.fixture
def fit(mnist):
    def train(student, *callbacks, **arguments):
        (images, labels), (test_images, test_labels) = mnist
        arguments = {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "verbose": 0,
            "validation_data": (test_images[:64], test_labels[:64]),
            **arguments,
        }
        return student.fit(
            images[:SAMPLES], labels[:SAMPLES], callbacks=list(callbacks), **arguments
        )

    return train


def assert_kept(student):
    """The student has all that was asked for, and its final form too."""
    assert student.scheme.unmet(student) is None
    measured = student.scheme.measure(student)
    assert measured["phase"] == 1.0
    # Ternary kernels keep the largest weight of each filter.
    assert 0.8 < measured["budget_ratio"] < 1.02
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfc.finalize(student)


def statistics(model):
    return [
        np.array(variable)
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def assert_statistics_of_present_weights(student, images):
    before = statistics(student)
    Recalibration(student, np.split(images[:SAMPLES], SAMPLES // BATCH))()
    for received, expected in zip(before, statistics(student), strict=True):
        np.testing.assert_allclose(received, expected, rtol=0.01, atol=1e-3)


class FallingScore(keras.callbacks.Callback):
    """Makes the first epoch the best one."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = 1.0 / (1.0 + epoch)


class KeepBest(keras.callbacks.Callback):
    """A user's own callback that keeps the weights of the best epoch, the first."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.weights = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)


class Epochs(keras.callbacks.EarlyStopping):
    """A user's subclass that records the epochs that it sees."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["phase"]))
        super().on_epoch_end(epoch, logs)


# Callbacks that choose epochs


@each_scheme
def test_early_stopping_restores_no_weights_from_before_the_end_of_the_compression(
    name, new_student, fit
):
    student = new_student(name)
    stop = Epochs("score", mode="max", patience=9, restore_best_weights=True)
    fit(student, FallingScore(), stop)
    assert_kept(student)
    assert 0 < len(stop.seen) < EPOCHS
    assert {phase for _, phase in stop.seen} == {1.0}
    assert stop.best_epoch == stop.seen[0][0]


@each_scheme
def test_early_stopping_does_not_stop_before_the_end_of_the_compression(
    name, new_student, fit
):
    student = new_student(name)
    stop = Epochs("score", mode="max", patience=1)
    history = fit(student, FallingScore(), stop, epochs=6)
    assert_kept(student)
    # The first epoch that it sees is the best, and the next one stops it.
    assert history.epoch[-1] == stop.seen[0][0] + 1 == stop.stopped_epoch < 5


@each_scheme
def test_best_checkpoint_is_from_after_the_end_of_the_compression(
    name, new_student, fit, tmp_path
):
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(
        path, monitor="score", mode="max", save_best_only=True
    )
    fit(new_student(name), FallingScore(), save)
    assert_kept(keras.models.load_model(path))


@pytest.mark.parametrize("name", ["bits", "size", "ranks"])
def test_best_checkpoint_is_written_after_a_search_of_the_whole_training(
    name, new_student, fit, tmp_path
):
    path = tmp_path / "best.weights.h5"
    save = keras.callbacks.ModelCheckpoint(
        path, monitor="score", mode="max", save_best_only=True, save_weights_only=True
    )
    student = new_student(name)
    student.scheme.search_fraction = 1.0
    fit(student, FallingScore(), save, epochs=2)
    loaded = new_student(name)
    loaded.load_weights(path)
    assert_kept(loaded)


@each_scheme
def test_fit_warns_of_a_callback_that_brings_back_weights_of_the_search(
    name, new_student, fit
):
    student = new_student(name)
    with pytest.warns(UserWarning, match="does not meet what its scheme was asked for"):
        fit(student, KeepBest())
    with pytest.warns(UserWarning, match="does not meet what its scheme was asked for"):
        tfc.finalize(student)


# Learning rates


@each_scheme
def test_learning_rates_set_by_epoch_are_the_rates_of_the_steps(name, new_student, fit):
    rates = [0.02, 0.01, 0.01, 0.005]
    student = new_student(name)
    fit(student, keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch]))
    assert_kept(student)
    np.testing.assert_allclose(student.optimizer.learning_rate, rates[-1], rtol=1e-6)


@each_scheme
def test_learning_rate_is_reduced_on_plateaus_after_the_compression_only(
    name, new_student, fit
):
    student = new_student(name)
    reduce = keras.callbacks.ReduceLROnPlateau("score", mode="max", patience=1)
    history = fit(student, FallingScore(), reduce, epochs=5).history
    assert_kept(student)
    rates = np.array(history["learning_rate"])
    phases = np.array(history["phase"])
    assert len(rates) == 5 and 0 < phases.sum() < 5
    np.testing.assert_allclose(rates[phases == 0], RATE)
    first = int(np.argmax(phases))  # the best epoch; rates are logged before they fall
    expected = RATE * 0.1 ** np.maximum(0, np.arange(5) - first - 1)
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


# Averages of the weights


@each_scheme
@pytest.mark.parametrize("swap", [None, False, True], ids=["none", "test", "epoch"])
def test_averaged_weights_have_their_own_statistics_and_keep_the_budget(
    name, swap, new_student, fit, mnist
):
    optimizer = keras.optimizers.SGD(RATE, 0.9, use_ema=True, ema_momentum=0.8)
    student = new_student(name, optimizer)
    callbacks = []
    if swap is not None:
        callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=swap))
    history = fit(student, *callbacks, shuffle=False).history
    assert_kept(student)
    assert_statistics_of_present_weights(student, mnist[0][0])
    if swap is not None:
        test = [x[:64] for x in mnist[1]]
        loss, _ = student.evaluate(*test, verbose=0)
        assert history["val_loss"][-1] == pytest.approx(loss, rel=0.02)


# Files


@each_scheme
def test_file_written_in_fit_has_the_state_of_the_optimizer(
    name, new_student, fit, tmp_path
):
    student = new_student(name)
    path = tmp_path / "{epoch}.keras"
    fit(student, keras.callbacks.ModelCheckpoint(path), epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, last = (keras.models.load_model(tmp_path / f"{n}.keras") for n in (1, 2))
    assert int(first.optimizer.iterations) == SAMPLES // BATCH
    assert int(last.optimizer.iterations) == 2 * SAMPLES // BATCH
    momenta = [x for x in last.optimizer.variables if "momentum" in x.path]
    expected = [x for x in student.optimizer.variables if "momentum" in x.path]
    for x, y in zip(momenta, expected, strict=True):
        np.testing.assert_array_equal(x, y)


@each_scheme
def test_training_that_a_file_continues_ends_as_without_interruption(
    name, new_student, fit, tmp_path
):
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = new_student(name)
    fit(whole, save, shuffle=False)
    loaded = keras.models.load_model(tmp_path / "1.keras")
    fit(loaded, shuffle=False, initial_epoch=1)
    for x, y in zip(loaded.weights, whole.weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=y.path)


@each_scheme
def test_backup_is_restored(name, new_student, fit, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(new_student(name), keras.callbacks.BackupAndRestore(tmp_path), Stop())
    student = new_student(name)
    history = fit(student, keras.callbacks.BackupAndRestore(tmp_path))
    assert history.epoch == [2, 3]
    assert_kept(student)


# Callbacks that watch


@each_scheme
def test_logs_of_each_epoch_tell_how_far_the_compression_is(
    name, new_student, fit, tmp_path
):
    seen = []
    student = new_student(name)
    history = fit(
        student,
        keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs)),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TerminateOnNaN(),
    ).history
    measured = student.scheme.measure(student)
    assert {"budget_ratio", "phase", COSTS.get(name, "sparsity")} <= measured.keys()
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for key, value in measured.items():
        assert len(history[key]) == EPOCHS
        assert all(type(logs[key]) is float for logs in seen)
        assert [float(row[key]) for row in rows] == pytest.approx(history[key])
        assert history[key][-1] == pytest.approx(value, rel=1e-3)
    assert history["phase"][0] == 0.0 and history["phase"][-1] == 1.0


@each_scheme
def test_diverged_training_ends_without_an_error_and_says_so(name, new_student, fit):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                bias = self.model.get_layer("head").bias
                bias.assign(np.full(bias.shape, np.nan))

    with pytest.warns(UserWarning, match="does not meet what its scheme was asked for"):
        history = fit(new_student(name), Poison(), keras.callbacks.TerminateOnNaN())
    assert history.epoch == [0]


# Arguments of fit and compile


@each_scheme
@pytest.mark.parametrize(
    "compiled, fitted",
    [
        ({"steps_per_execution": 6}, {"epochs": 3}),
        ({}, {"epochs": 1}),
        ({"steps_per_execution": 6}, {"epochs": 1}),
        ({}, {"initial_epoch": 2}),
        ({}, {"validation_freq": 3}),
    ],
    ids=["steps_per_execution", "one_epoch", "one_call", "initial", "validation_freq"],
)
@pytest.mark.filterwarnings("ignore:.*nothing was trained after it")
def test_gradual_compression_reaches_its_end(name, compiled, fitted, new_student, fit):
    student = new_student(name, **compiled)
    fit(student, **fitted)
    assert_kept(student)


# Interruptions


class Interrupted:
    """Function that is interrupted from the keyboard at its n-th call."""

    def __init__(self, function, n):
        self.function, self.n = function, n

    def __call__(self, *args, **kwargs):
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)
