"""Scores of channels and ranks, against the definition and every number of ranks."""

import itertools

import numpy as np
import pytest

from tfcompress.schemes.decomposition.importance import channel_scores, rank_scores

RNG = np.random.default_rng(0)


def log_loss(importances, kept):
    return -np.log(importances[kept].sum() / importances.sum())


def scores_of(importances, savings, other=0.0):
    """Scores of channels that one layer reads."""
    return channel_scores(np.array([importances]), np.array([other]), savings)


def test_channel_scores_are_losses_per_saving():
    scores = scores_of([4.0, 1.0, 2.0, 3.0], np.full(4, 5.0))
    np.testing.assert_allclose(
        scores[[1, 2, 3]], [np.log(x) / 5 for x in (10 / 9, 9 / 7, 7 / 4)]
    )
    assert scores[0] == np.inf  # the last of its layer


def test_channel_scores_add_up_to_the_loss_of_all_readers():
    importances, savings = RNG.exponential(size=(3, 9)), np.full(9, 3.0)
    scores = channel_scores(importances, np.zeros(3), savings)
    order = np.argsort(scores)
    for removed in range(1, 9):
        loss = sum(log_loss(values, order[removed:]) for values in importances)
        # Scores are equal where a later one alone would be lower.
        assert 3.0 * scores[order[:removed]].sum() >= loss - 1e-9
    everything_but_one = 3.0 * np.sort(scores)[:-1].sum()
    assert everything_but_one == pytest.approx(loss, rel=0.1)


def test_other_channels_of_a_reader_make_all_scores_finite():
    """Half of the variance that the layer reads is that of other channels."""
    scores = scores_of([1.0, 3.0], np.ones(2), other=4.0)
    np.testing.assert_allclose(scores, [np.log(8 / 7), np.log(7 / 4)])


def test_channel_scores_do_not_depend_on_the_scale_of_a_reader():
    """Shares of each reader's variance count, whatever the scale of its outputs."""
    importances = np.array([[1e6, 2e6, 4e6], [3.0, 1e-3, 2e-3]])
    scores = channel_scores(importances, np.zeros(2), np.ones(3))
    assert np.argmin(scores) == 1


def test_a_narrow_layer_is_not_emptied_before_a_wide_one():
    """Equal channels: shares of the remaining variance, not magnitudes, count."""
    narrow = scores_of(np.full(4, 1.0), np.full(4, 1.0))
    wide = scores_of(np.full(16, 1.0), np.full(16, 0.25))
    threshold = np.sort(np.concatenate([narrow, wide]))[9]
    kept = [(scores > threshold).mean() for scores in (narrow, wide)]
    assert kept == [0.5, 0.5]


def test_channel_scores_grow_with_importance_per_saving():
    importances, savings = RNG.exponential(size=50), RNG.uniform(1, 9, size=50)
    scores = scores_of(importances, savings)
    assert (np.diff(scores[np.argsort(importances / savings)]) >= 0).all()


def test_channels_and_ranks_without_variance_score_zero():
    importances = np.array([0.0, 2.0, 0.0, 1.0])
    scores = scores_of(importances, np.ones(4))
    assert scores[0] == scores[2] == 0 < scores[3] < scores[1]
    scores = rank_scores(importances, np.arange(1.0, 5), 5.0)
    assert scores[0] == scores[2] == 0 < scores[3] < scores[1]
    for scores in (
        scores_of(np.zeros(3), np.ones(3)),
        rank_scores(np.zeros(3), np.arange(1.0, 4), 4.0),
    ):
        assert sorted(scores)[:2] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_every_threshold_keeps_the_best_number_of_ranks(seed):
    """No number of ranks has a smaller loss + threshold * cost, by trying them all."""
    rng = np.random.default_rng(seed)
    importances = rng.exponential(size=12) ** 2
    costs = np.where(np.arange(1, 13) < 8, 9.0 * np.arange(1, 13), np.inf)
    merged_cost = 100.0
    scores = rank_scores(importances, costs, merged_cost)
    ordered = np.sort(importances)
    options = {12: (merged_cost, 0.0)}
    for left in range(1, 8):
        options[left] = (costs[left - 1], log_loss(ordered, slice(12 - left, None)))
    for low, high in itertools.pairwise(np.unique(scores[np.isfinite(scores)])):
        threshold = (low + high) / 2
        left = int((scores > threshold).sum())
        best = min(loss + threshold * cost for cost, loss in options.values())
        cost, loss = options[left]
        assert loss + threshold * cost == pytest.approx(best)


def test_ranks_that_save_nothing_alone_share_a_score():
    """From one layer of 100 to two, of at most 63, and one rank after another."""
    costs = np.where(np.arange(1, 13) < 8, 9.0 * np.arange(1, 13), np.inf)
    scores = rank_scores(np.ones(12), costs, 100.0)
    values, counts = np.unique(scores, return_counts=True)
    assert counts[0] >= 5 and values[-1] == np.inf


def test_ranks_of_a_layer_that_is_never_decomposed_score_infinity():
    scores = rank_scores(np.ones(4), np.full(4, np.inf), 100.0)
    assert (scores == np.inf).all()
    assert (rank_scores(np.ones(1), np.array([5.0]), 4.0) == np.inf).all()
