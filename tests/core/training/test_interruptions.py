"""Trainings that are interrupted, and the check of what a scheme was asked for."""

import re

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.core.scheme_table import (
    BATCH,
    RATE,
    SAMPLES,
    UNMET,
    assert_kept,
    each_scheme,
)
from tfcompress.core.training import calibration
from tfcompress.schemes.bit_sharing import search, sensitivity
from tfcompress.schemes.decomposition import search_space


class Interrupt(keras.callbacks.Callback):
    """Records the variables where a search begins, and may interrupt a later step."""

    def __init__(self, epoch=None, batch=None):
        super().__init__()
        self.place = epoch, batch

    def on_train_begin(self, logs=None):
        self.before = values(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise KeyboardInterrupt


def values(student):
    return {x.path: np.array(x) for x in student.variables}


@pytest.mark.parametrize("name, module, function, call", [
    pytest.param("bits", sensitivity, "_outputs", 6, marks=pytest.mark.slow),
    ("ranks", search_space, "rotate_to_principal_axes", 3),
])  # fmt: skip
def test_interrupted_beginning_of_a_search_changes_nothing(
    name, module, function, call, new_student, fit, monkeypatch
):
    student, start = new_student(name), Interrupt()
    with monkeypatch.context() as patched:
        interrupt(patched, module, function, call)
        with pytest.raises(KeyboardInterrupt):
            fit(student, start)
    for path, value in values(student).items():
        np.testing.assert_array_equal(value, start.before[path], err_msg=path)
    fit(student, epochs=2)
    assert_kept(student)


@pytest.mark.slow
def test_interrupted_end_of_a_search_freezes_nothing(new_student, fit, monkeypatch):
    student = new_student("bits")
    with monkeypatch.context() as patched:
        interrupt(patched, search, "calibrate_activations", 1)
        with pytest.raises(KeyboardInterrupt):
            fit(student, epochs=1)
    assert student.scheme.measure(student)["phase"] == 0.0
    with pytest.warns(UserWarning, match=f"{UNMET}: its search has not ended"):
        tfc.finalize(student)


def test_interrupted_calibration_begins_again(new_student, fit, monkeypatch):
    student = new_student("bits")
    with monkeypatch.context() as patched:
        interrupt(patched, calibration, "check_finite_activations", 4)
        with pytest.raises(KeyboardInterrupt):
            fit(student, epochs=1)
    for path, value in values(student).items():
        if path.endswith("calibrated"):
            assert value == 0.0
    outputs = student.predict_on_batch(np.zeros((1, 28, 28, 1), "float32"))
    assert np.isfinite(outputs).all()


def test_student_of_an_interrupted_admm_computes_with_its_codes(new_student, fit):
    student = new_student("size", scheme=tfc.SizeConstrained(value_bits="1/500"))
    quantizers = student.size_space.codebooks.quantizers.values()
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.extend(
            float(q.quantizes) for q in quantizers
        )
    )
    with pytest.raises(KeyboardInterrupt):
        fit(student, watch, Interrupt(0, 1))
    assert set(seen) == {0.0}
    assert {float(q.quantizes) for q in quantizers} == {1.0}
    names = {x.name for x in student.optimizer.variables}
    assert not names & {"rho", "anchor"}


def test_interrupted_step_of_the_finish_leaves_the_learning_rate(new_student, fit):
    student, calls = new_student("ternary"), []

    def loss(y_true, y_pred):
        calls.append(float(student.optimizer.learning_rate))
        if len(calls) == SAMPLES // BATCH:  # the last step
            raise KeyboardInterrupt
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, True)

    student.compile(keras.optimizers.SGD(RATE), loss, run_eagerly=True)
    with pytest.raises(KeyboardInterrupt):
        fit(student, epochs=1, validation_data=None)
    assert calls[-1] < 0.95 * RATE
    assert float(student.optimizer.learning_rate) == pytest.approx(RATE)


def interrupt(monkeypatch, module, name, call):
    """Makes the n-th call of a function an interruption from the keyboard."""
    function, calls = getattr(module, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)


@each_scheme()
def test_finalize_warns_by_how_much_an_untrained_student_misses_its_budget(
    name, new_student
):
    student = new_student(name)
    with pytest.warns(UserWarning, match=UNMET) as warned:
        tfc.finalize(student)
    [text] = [str(x.message) for x in warned if UNMET in str(x.message)]
    if name == "ternary":
        assert re.search(r"'conv1' has a sparsity of 0\.\d+ in place of 0\.9", text)
    else:
        ratio = student.scheme.measure(student)["budget_ratio"]
        assert "its search has not ended" in text
        if ratio > 1.0:
            assert f"are {ratio:.4g} times the budget" in text
