"""Callbacks of Keras and of users, with every scheme: a table of callbacks x schemes.

A training with any of them ends with all that the scheme was asked for.
"""

import csv
import functools
import types
import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.core.scheme_table import (
    BATCH,
    EPOCHS,
    RATE,
    SAMPLES,
    UNMET,
    assert_kept,
    each_scheme,
)
from tfcompress.core.training.recalibration import Recalibration

COSTS = {"ternary": "sparsity", "bits": "bops", "size": "value_bits", "ranks": "macs"}


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


class Stop(keras.callbacks.EarlyStopping):
    """A user's subclass that records the epochs that it sees."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["phase"]))
        super().on_epoch_end(epoch, logs)


@pytest.fixture(scope="module")
def watched(new_student, fit, tmp_path_factory):
    """Function from a scheme to a training with many callbacks, and all they saw."""

    @functools.cache
    def train(name):
        student, folder = new_student(name), tmp_path_factory.mktemp(name)
        stop = Stop("score", mode="max", patience=9, restore_best_weights=True)
        logs = []
        history = fit(
            student,
            FallingScore(),
            keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
            stop,
            keras.callbacks.ModelCheckpoint(
                folder / "best.keras", monitor="score", mode="max", save_best_only=True
            ),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda _, x: logs.append(x)),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.BackupAndRestore(folder / "backup"),
        ).history
        return types.SimpleNamespace(
            student=student, folder=folder, stop=stop, logs=logs, history=history
        )

    return train


@pytest.fixture(scope="module")
def stopped(new_student, fit):
    """Function from a scheme to a training whose metric only gets worse."""

    @functools.cache
    def train(name):
        student, stop = new_student(name), Stop("score", mode="max", patience=2)
        reduce = keras.callbacks.ReduceLROnPlateau("score", mode="max", patience=1)
        history = fit(student, FallingScore(), reduce, stop, epochs=6)
        return types.SimpleNamespace(student=student, stop=stop, history=history)

    return train


# Callbacks that compare epochs


@each_scheme("bits", "size", "ranks")
def test_early_stopping_restores_no_weights_from_before_the_end_of_the_compression(
    name, watched
):
    run = watched(name)
    assert_kept(run.student)
    assert 0 < len(run.stop.seen) < EPOCHS
    assert {phase for _, phase in run.stop.seen} == {1.0}
    assert run.stop.best_epoch == run.stop.seen[0][0]


@each_scheme("bits", "size", "ranks")
def test_best_checkpoint_is_from_after_the_end_of_the_compression(name, watched):
    loaded = keras.models.load_model(watched(name).folder / "best.keras")
    assert_kept(loaded)


@each_scheme("bits", "size", "ranks")
def test_early_stopping_counts_its_patience_from_the_end_of_the_compression(
    name, stopped
):
    run = stopped(name)
    assert_kept(run.student)
    assert {phase for _, phase in run.stop.seen} == {1.0}
    # The first epoch that it sees is the best one, and two worse ones follow.
    assert run.history.epoch[-1] == run.stop.seen[0][0] + 2 == run.stop.stopped_epoch
    assert run.stop.stopped_epoch < 6


@each_scheme("bits", "size", "ranks")
def test_learning_rate_is_reduced_on_plateaus_after_the_compression_only(name, stopped):
    run = stopped(name)
    rates, phases = (
        np.array(run.history.history[key]) for key in ("learning_rate", "phase")
    )
    np.testing.assert_allclose(rates[phases == 0], RATE, rtol=1e-6)
    # Logged before it falls: by the second worse epoch it has fallen once.
    np.testing.assert_allclose(rates[phases == 1], RATE * np.array([1, 1, 0.1]), 1e-6)


@each_scheme("bits", "size", "ranks")
def test_best_checkpoint_is_written_though_the_compression_ends_last(
    name, new_student, fit, tmp_path
):
    save = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", "score", save_best_only=True, mode="max",
        save_weights_only=True,
    )  # fmt: skip
    student = new_student(name)
    student.scheme.search_fraction = 1.0
    fit(student, FallingScore(), save, epochs=1)
    loaded = new_student(name)
    loaded.load_weights(tmp_path / "best.weights.h5")
    assert_kept(loaded)


@each_scheme("size", "ranks", "bits")
def test_weights_of_the_search_that_a_user_brings_back_are_warned_of(
    name, new_student, fit
):
    student = new_student(name)
    with pytest.warns(UserWarning, match=UNMET):
        fit(student, KeepBest())
    with pytest.warns(UserWarning, match=UNMET):
        tfc.finalize(student)


# Learning rates


@each_scheme("bits", "size", "ranks")
def test_learning_rates_set_by_epoch_hold_and_last(name, new_student, fit):
    rates, seen = [0.02, 0.005, 0.05, 0.001], []
    student = new_student(name)
    fit(
        student,
        keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch]),
        keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: seen.append(
                float(student.optimizer.learning_rate)
            )
        ),
    )
    assert_kept(student)
    np.testing.assert_allclose(seen, np.repeat(rates, SAMPLES // BATCH), rtol=1e-6)
    np.testing.assert_allclose(student.optimizer.learning_rate, rates[-1], rtol=1e-6)


# Averages of the weights


@each_scheme("bits", "size", "ranks")
@pytest.mark.parametrize(
    "swap",
    [
        pytest.param(None, id="none", marks=pytest.mark.slow),
        pytest.param(False, id="test", marks=pytest.mark.slow),
        pytest.param(True, id="epoch"),
    ],
)
def test_averaged_weights_have_their_own_statistics_and_keep_the_budget(
    name, swap, new_student, fit, mnist
):
    optimizer = keras.optimizers.SGD(RATE, 0.9, use_ema=True, ema_momentum=0.8)
    student = new_student(name, optimizer)
    callbacks = []
    if swap is not None:
        callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=swap))
    history = fit(student, *callbacks).history
    assert_kept(student)
    norms = [student.get_layer(f"bn{i}") for i in range(3)]
    before = [np.array(x) for norm in norms for x in norm.non_trainable_variables]
    Recalibration(student, np.split(mnist[0][0][:SAMPLES], SAMPLES // BATCH))()
    after = [np.array(x) for norm in norms for x in norm.non_trainable_variables]
    for received, expected in zip(before, after, strict=True):
        np.testing.assert_allclose(received, expected, rtol=0.01, atol=1e-3)
    if swap is not None:
        loss, _ = student.evaluate(*(x[:64] for x in mnist[1]), verbose=0)
        # A file within a size is made once more after the last validation.
        rel = 0.1 if name == "size" else 0.02
        assert history["val_loss"][-1] == pytest.approx(loss, rel=rel)


# Files


@each_scheme("bits", "size", "ranks")
def test_file_written_in_fit_has_the_state_of_the_optimizer(name, watched):
    run = watched(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, last = (
            keras.models.load_model(run.folder / f"{n}.keras") for n in (1, EPOCHS)
        )
    assert int(first.optimizer.iterations) == SAMPLES // BATCH
    for variable, expected in zip(
        last.optimizer.variables, run.student.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(variable, expected, err_msg=expected.path)


@each_scheme("bits", "size", "ranks")
def test_training_that_a_file_continues_ends_as_without_interruption(
    name, watched, fit
):
    folder = watched(name).folder
    student = keras.models.load_model(folder / "1.keras")
    fit(student, initial_epoch=1)
    whole = keras.models.load_model(folder / f"{EPOCHS}.keras")
    for weight, expected in zip(student.weights, whole.weights, strict=True):
        np.testing.assert_allclose(
            weight, expected, rtol=1e-4, atol=1e-5, err_msg=expected.path
        )


@pytest.mark.slow
def test_training_that_a_file_of_the_admm_continues_ends_as_without_interruption(
    new_student, fit, tmp_path
):
    student = new_student("size", scheme=tfc.SizeConstrained(value_bits="1/500"))
    fit(student, keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"), epochs=8)
    loaded = keras.models.load_model(tmp_path / "1.keras")
    assert loaded.restored["pull"] > 0.0 == loaded.restored["loose"]  # in the ADMM
    fit(loaded, initial_epoch=1, epochs=8)
    for weight, expected in zip(loaded.weights, student.weights, strict=True):
        np.testing.assert_allclose(
            weight, expected, rtol=1e-4, atol=1e-5, err_msg=expected.path
        )


# Callbacks that watch


@each_scheme("bits", "size", "ranks")
def test_logs_of_each_epoch_tell_how_far_the_compression_is(name, watched):
    run = watched(name)
    measured = run.student.scheme.measure(run.student)
    assert {"budget_ratio", "phase", COSTS[name]} <= measured.keys()
    with open(run.folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    best = run.stop.best_epoch
    for key, value in measured.items():
        assert len(run.history[key]) == EPOCHS
        assert all(type(logs[key]) is float for logs in run.logs)
        assert [float(row[key]) for row in rows] == pytest.approx(run.history[key])
        assert run.history[key][best] == pytest.approx(value, rel=1e-3)
    assert run.history["phase"][0] == 0.0 and run.history["phase"][-1] == 1.0


@each_scheme("ternary", "bits", "ranks")
def test_diverged_training_ends_without_an_error_and_is_warned_of(
    name, new_student, fit
):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                bias = self.model.get_layer("head").bias
                bias.assign(np.full(bias.shape, np.nan))

    with pytest.warns(UserWarning, match=f"{UNMET}: its weights are NaN"):
        history = fit(new_student(name), Poison(), keras.callbacks.TerminateOnNaN())
    assert history.epoch == [0]


# Arguments of fit and compile


@each_scheme("bits", "size", "ranks")
@pytest.mark.parametrize(
    "compiled, fitted",
    [
        pytest.param({"steps_per_execution": 6}, {"epochs": 1}, id="one_call"),
        *(
            pytest.param(compiled, fitted, id=name, marks=pytest.mark.slow)
            for name, compiled, fitted in (
                ("steps_per_execution", {"steps_per_execution": 6}, {"epochs": 3}),
                ("one_epoch", {}, {"epochs": 1}),
                ("initial_epoch", {}, {"initial_epoch": 2}),
                ("validation_freq", {}, {"validation_freq": 3}),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nothing was trained after it")
def test_gradual_compression_reaches_its_end(name, compiled, fitted, new_student, fit):
    student = new_student(name, **compiled)
    fit(student, **fitted)
    assert_kept(student)


@pytest.mark.slow
def test_file_is_within_its_size_whenever_callbacks_see_it(new_student, fit):
    class Sizes(keras.callbacks.Callback):
        seen = []

        def on_epoch_end(self, epoch, logs=None):
            if logs["phase"]:
                self.seen.append(self.model.scheme.size_of(self.model))

    student = new_student("size", scheme=tfc.SizeConstrained(size="7 kB"))
    history = fit(student, Sizes(), epochs=3).history
    assert len(Sizes.seen) == 2 and max(Sizes.seen) <= 7000
    # The logs have the overhead as last measured.
    np.testing.assert_allclose(history["xz_bytes"][-2:], Sizes.seen, atol=16)
