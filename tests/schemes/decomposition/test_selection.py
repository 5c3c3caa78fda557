"""The cut on a network small enough to count by hand, and to try every cut."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.schemes.decomposition.selection import (
    Cut,
    Scores,
    choose_cut,
    cut_at,
    lowest_cost,
)
from tfcompress.schemes.decomposition.width_model import WidthModel

FACTORIZED = ("a", "b", "c")


def net():
    """a (3x3, 8), batch norm, b (3x3, 12), depthwise, c (Dense 5)."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="a")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(12, 3, name="b")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="c")(x))


@pytest.fixture
def space():
    """Function from the unit and margin to `(width model, channels)`."""
    model = net()
    channels = Channels(Graph(model))

    def make(unit="macs", margin=1.0):
        return WidthModel(model, channels, unit, FACTORIZED, margin), channels

    return make


def alive(channels, a=8, b=12):
    kept = np.ones(len(channels.frozen), bool)
    kept[channels.written["a"][a:]] = False
    kept[channels.written["b"][b:]] = False
    return kept


def test_costs_are_those_of_smaller_layers(space):
    macs, channels = space()
    params, _ = space("params")
    full = {"a": 8, "b": 12, "c": 5}
    assert macs.whole() == macs.total(alive(channels), full)
    assert macs.whole() == total_cost(layer_costs(net())).macs
    assert params.whole() == total_cost(layer_costs(net())).params
    # 6 x 6 positions of a, 4 x 4 of b, 2 x 2 of the depthwise convolution.
    expected = 36 * 27 * 5 + 16 * 45 * 7 + 4 * 9 * 7 + 7 * 5
    assert macs.total(alive(channels, 5, 7), full) == pytest.approx(expected)
    expected = 27 * 5 + 4 * 5 + (45 + 1) * 7 + (9 + 1) * 7 + (7 + 1) * 5
    assert params.total(alive(channels, 5, 7), full) == pytest.approx(expected)
    # Two layers for b: 3 filters of 3 x 3 x 5, and 7 of 1 x 1 x 3.
    ranks = {**full, "b": 3}
    expected = 36 * 27 * 5 + 16 * (45 * 3 + 3 * 7) + 4 * 9 * 7 + 7 * 5
    assert macs.total(alive(channels, 5, 7), ranks) == pytest.approx(expected)


def test_two_layers_have_to_be_clearly_cheaper(space):
    """b costs 72 * 12 = 864 per position, a rank of it 72 + 12 = 84."""
    for margin, largest in ((1.0, 10), (0.7, 7), (0.4, 4)):
        model, channels = space(margin=margin)
        decomposed = [model.is_decomposed("b", alive(channels), r) for r in range(13)]
        assert decomposed == [r <= largest for r in range(13)]
    model.keep_whole("b")
    assert not model.is_decomposed("b", alive(channels), 1)


def scores_of(channels, seed=0):
    rng = np.random.default_rng(seed)
    classes = np.full(len(channels.frozen), np.inf)
    groups = [channels.written["a"], channels.written["b"]]
    for group in groups:
        classes[group] = rng.uniform(size=len(group))
    ranks = {"a": rng.uniform(size=8), "b": rng.uniform(size=12), "c": np.ones(5)}
    return Scores(classes, groups, ranks)


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.12])
def test_a_cut_meets_the_budget_and_takes_the_lowest_scores(space, unit, share):
    model, channels = space(unit, margin=0.7)
    scores = scores_of(channels)
    budget = share * model.whole()
    cut = choose_cut(model, scores, budget)
    assert 0.85 * budget <= cut.cost <= budget
    counts = {name: int(kept.sum()) for name, kept in cut.ranks.items()}
    assert cut.cost == model.total(cut.alive, counts)
    for group in scores.groups:
        kept, gone = group[cut.alive[group]], group[~cut.alive[group]]
        assert len(kept) >= len(group) / 8
        assert not len(gone) or scores.classes[gone].max() < scores.classes[kept].min()
    assert cut.alive[np.isinf(scores.classes)].all()


def test_what_is_not_decomposed_keeps_its_ranks(space):
    model, channels = space(margin=0.7)
    scores = scores_of(channels)
    for threshold in (0.1, 0.5, 0.9):
        cut = cut_at(threshold, model, scores)
        for name, kept in cut.ranks.items():
            rank = int(kept.sum())
            assert kept.all() or model.is_decomposed(name, cut.alive, rank)


@pytest.mark.parametrize("multiple", [2, 3, 4])
def test_channels_are_kept_in_multiples_or_whole(space, multiple):
    model, channels = space()
    scores = scores_of(channels)
    cut = choose_cut(model, scores, 0.5 * model.whole(), multiple)
    assert cut.cost <= 0.5 * model.whole()
    for group in scores.groups:
        kept = int(cut.alive[group].sum())
        assert kept % multiple == 0 or kept == len(group)


def test_no_cut_costs_less_than_the_lowest(space):
    model, channels = space(margin=0.7)
    scores = scores_of(channels)
    lowest = lowest_cost(model, scores)
    tried = [
        model.total(alive(channels, a, b), {"a": r, "b": s, "c": t})
        for a, b, r, s, t in itertools.product((1, 8), (2, 12), (1, 8), (1, 12), (1, 5))
    ]
    assert lowest == pytest.approx(min(tried))
    assert isinstance(choose_cut(model, scores, lowest), Cut)
    assert choose_cut(model, scores, lowest).cost == lowest
