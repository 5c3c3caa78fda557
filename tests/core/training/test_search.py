"""Base class of searches, with a search that records its calls."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.core.training.search import STEPS_PER_EPOCH, Search

X, Y = np.ones((40, 2), "float32"), np.ones((40, 1), "float32")


class Space:
    """Search space that only knows whether it is frozen."""

    def __init__(self):
        self.frozen = False

    def is_frozen(self):
        return self.frozen


class RecordingSearch(Search):
    def __init__(self, space, fraction):
        super().__init__(space, None, fraction)
        self.calls = []

    def begin(self, share):
        self.calls.append(("begin", share))

    def resume(self, state):
        self.calls.append(("resume", state))

    def advance(self, share):
        self.calls.append(("advance", share))

    def on_rate_change(self, factor):
        self.calls.append(("rate", factor))

    def freeze(self):
        self.calls.append(("freeze", None))
        self.space.frozen = True


@pytest.fixture
def fit():
    """Function that trains for two epochs of four steps with a search."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    model.restored = {}

    def run(search, restored=None, others=(), optimizer=None, **kwargs):
        model.restored = restored or {}
        if optimizer is not None:
            model.compile(optimizer, "mse")
        callbacks = [search, *others]
        model.fit(
            X, Y, batch_size=10, epochs=2, callbacks=callbacks, verbose=0, **kwargs
        )
        return [name for name, _ in search.calls]

    return run


def test_search_begins_advances_and_freezes_once_at_its_fraction(fit):
    search = RecordingSearch(Space(), fraction=0.5)
    names = fit(search)
    assert names[0] == "begin" and names[-1] == "freeze"
    assert set(names[1:-1]) == {"advance"}
    shares = [share for _, share in search.calls[:-1]]
    assert shares[0] == 0.0
    # Steps 0 to 3 of 8, half of which search.
    np.testing.assert_allclose(sorted(set(shares)), [0.0, 0.25, 0.5, 0.75])
    assert not search.searching and search.model.search is None


def test_a_short_search_advances_as_often_as_a_long_one():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    model.restored = {}
    counts = []
    for fraction in (0.25, 0.5, 1.0):
        search = RecordingSearch(Space(), fraction)
        x, y = np.ones((400, 2), "float32"), np.ones((400, 1), "float32")
        model.fit(x, y, batch_size=1, callbacks=[search], verbose=0)
        names = [name for name, _ in search.calls]
        counts.append(names.count("advance"))
    assert min(counts) > 95 and max(counts) <= 100


def test_search_of_the_whole_training_freezes_at_its_end(fit):
    search = RecordingSearch(Space(), fraction=1.0)
    names = fit(search)
    assert names.count("freeze") == 1 and names[-1] == "freeze"


def test_frozen_space_is_not_searched_again(fit):
    space = Space()
    fit(RecordingSearch(space, fraction=0.5))
    assert fit(RecordingSearch(space, fraction=0.5)) == []


def test_search_of_a_later_epoch_resumes_from_a_restored_state(fit):
    search = RecordingSearch(Space(), fraction=1.0)
    fit(search, restored={"a": 1}, initial_epoch=1)
    assert search.calls[0] == ("resume", {"a": 1})
    assert search.model.restored == {}


def test_search_of_a_later_epoch_begins_late_without_a_restored_state(fit):
    search = RecordingSearch(Space(), fraction=1.0)
    fit(search, initial_epoch=1)
    assert search.calls[0] == ("begin", 0.5)


def test_search_knows_its_steps_and_the_sum_of_its_learning_rates(fit):
    search = RecordingSearch(Space(), fraction=0.5)
    fit(search)
    assert search.steps() == 0.5 * 2 * 4
    assert search.sum_of_learning_rates() == pytest.approx(4 * 0.25)
    unknown = RecordingSearch(Space(), fraction=0.5)
    unknown.params = {"steps": None, "epochs": 2}
    unknown.set_model(search.model)
    assert unknown.steps() == 0.5 * 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize("rate, expected", [(0.2, []), (0.05, [5.0]), (0.5, [0.5])])
def test_search_follows_a_learning_rate_that_a_callback_changes_much(
    fit, rate, expected
):
    class SetRate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.learning_rate = rate

    search = RecordingSearch(Space(), fraction=0.5)
    fit(search, others=[SetRate()])
    factors = [factor for name, factor in search.calls if name == "rate"]
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
    assert search.calls[-1][0] == "freeze"


def test_search_restarts_the_averages_of_the_weights_at_its_end(fit):
    class JumpingSearch(RecordingSearch):
        def freeze(self):
            super().freeze()
            self.model.weights[0].assign([[100.0], [100.0]])

    search = JumpingSearch(Space(), fraction=0.5)
    optimizer = keras.optimizers.SGD(1e-6, use_ema=True, ema_momentum=0.999)
    fit(search, optimizer=optimizer)
    # The averages, which `fit` has set the weights to, are of the steps after it.
    np.testing.assert_allclose(search.model.weights[0], 100.0, atol=0.1)


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError])
def test_error_after_the_last_step_is_a_warning_and_changes_nothing(fit, error):
    class FailingSearch(RecordingSearch):
        def freeze(self):
            self.model.weights[0].assign([[9.0], [9.0]])
            raise error("the disk is full.")

    search = FailingSearch(Space(), fraction=1.0)
    with pytest.warns(UserWarning, match="end of the search.*the disk is full"):
        fit(search)
    assert len(search.model.history.history["loss"]) == 2
    assert not search.space.frozen and not search.searching
    assert (np.abs(search.model.weights[0]) < 9.0).all()


def test_search_that_diverged_is_not_frozen(fit):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True
            self.model.weights[0].assign([[np.nan], [1.0]])

    search = RecordingSearch(Space(), fraction=0.5)
    names = fit(search, others=[Poison()])
    assert "freeze" not in names and not search.searching
