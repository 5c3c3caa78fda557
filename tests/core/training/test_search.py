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

    def freeze(self):
        self.calls.append(("freeze", None))
        self.space.frozen = True


@pytest.fixture
def fit():
    """Function that trains for two epochs of four steps with a search."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    model.restored = {}

    def run(search, restored=None, **kwargs):
        model.restored = restored or {}
        model.fit(
            X, Y, batch_size=10, epochs=2, callbacks=[search], verbose=0, **kwargs
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
