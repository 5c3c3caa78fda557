"""Scores of channels and ranks from the activations of a student."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.schemes.decomposition.activation_statistics import MeasureActivations
from tfcompress.schemes.decomposition.scoring import compute_scores, equal_scores

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(2, 3, (4, 8, 6, 3)).astype("float32") for _ in range(3)]


@pytest.fixture
def model():
    """A layer that reads the channels of two others side by side."""
    inputs = keras.Input((8, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="a")(inputs)
    y = keras.layers.Conv2D(4, 3, name="b")(inputs)
    x = keras.layers.Concatenate()([x, y])
    return keras.Model(inputs, keras.layers.Conv2D(4, 1, name="reader")(x))


def compress(model):
    return tfc.compress(model, tfc.Decomposition(macs="1/2", margin=1.0))


def scores_of(student):
    space = student.rank_space
    measure = MeasureActivations(Recalibration(student, BATCHES), space.layers)
    return compute_scores(space, measure())


def test_channels_that_explain_little_have_the_lowest_scores(model):
    kernel = np.array(model.get_layer("reader").kernel)
    kernel[:, :, 1] = 1e-4  # the reader hardly uses it
    model.get_layer("reader").kernel.assign(kernel)
    kernel = np.array(model.get_layer("b").kernel)
    kernel[..., 2] = 1e-4  # the reader uses it, but it hardly varies
    model.get_layer("b").kernel.assign(kernel)
    student = compress(model)
    scores = scores_of(student).groups
    written = student.rank_space.channels.written
    least = {written["a"][1], written["b"][2]}
    assert set(np.argsort(scores)[:2]) == least
    assert scores[sorted(least)].max() < 0.01 * np.sort(scores)[2]
    # The reader has channels of the other layer, so neither empties it.
    assert np.isfinite(scores[np.concatenate([written["a"], written["b"]])]).all()


def test_groups_of_negligible_norm_score_zero_and_others_do_not(model):
    student = compress(model)
    layer = student.get_layer("b")
    layer.set_kernel(np.array(layer.kernel))
    coefficients = layer.coefficients
    values = np.array(coefficients)
    values[1] *= 1e-5
    values[:, 3] *= 1e-5
    coefficients.assign(values)
    scores = scores_of(student)
    space = student.rank_space
    assert scores.ranks["b"][1] == 0 < scores.ranks["b"][[0, 2, 3]].min()
    written = space.channels.written["b"]
    assert scores.groups[written[3]] == 0 < scores.groups[written[:3]].min()


def test_equal_scores_are_zero_where_channels_can_be_removed(model):
    space = compress(model).rank_space
    scores = equal_scores(space.width_model, space.channels)
    written = space.channels.written
    assert (scores.groups[np.concatenate([written["a"], written["b"]])] == 0).all()
    assert np.isinf(scores.groups[written["reader"]]).all()  # the model returns them
    assert {name: len(values) for name, values in scores.ranks.items()} == {
        "a": 4,
        "b": 4,
        "reader": 4,
    }
    assert not np.concatenate(list(scores.ranks.values())).any()
