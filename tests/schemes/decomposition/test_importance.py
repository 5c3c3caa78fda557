"""Scores of channels and ranks, against the definition and against every cut."""

import itertools

import numpy as np
import pytest

from tfcompress.schemes.decomposition.importance import channel_scores, rank_scores

RNG = np.random.default_rng(0)


def log_loss(energies, kept):
    return -np.log(energies[kept].sum() / energies.sum())


def scores_of(energies, costs, others=0.0):
    """For one layer that reads the channels."""
    return channel_scores(np.array([energies]), np.array([others]), costs)


def test_channels_are_taken_for_the_least_loss_per_cost():
    scores = scores_of([4.0, 1.0, 2.0, 3.0], np.full(4, 5.0))
    np.testing.assert_allclose(
        scores[[1, 2, 3]], [np.log(x) / 5 for x in (10 / 9, 9 / 7, 7 / 4)]
    )
    assert scores[0] == np.inf  # the last one of its layer


def test_their_sum_is_the_loss_of_all_layers_that_read_them():
    energies, costs = RNG.exponential(size=(3, 9)), np.full(9, 3.0)
    scores = channel_scores(energies, np.zeros(3), costs)
    order = np.argsort(scores)
    for taken in range(1, 9):
        loss = sum(log_loss(energy, order[taken:]) for energy in energies)
        # Equal scores where a later one alone would be cheaper.
        assert 3.0 * scores[order[:taken]].sum() >= loss - 1e-9
    everything_but_one = 3.0 * np.sort(scores)[:-1].sum()
    assert everything_but_one == pytest.approx(loss, rel=0.1)


def test_channels_from_elsewhere_share_a_layer():
    """Half of what it reads is not up for removal: the last channel is finite."""
    scores = scores_of([1.0, 3.0], np.ones(2), others=4.0)
    np.testing.assert_allclose(scores, [np.log(8 / 7), np.log(7 / 4)])


def test_a_layer_that_hardly_needs_a_channel_does_not_outweigh_one_that_does():
    """Shares of each reader's energy count, whatever the scale of its outputs."""
    energies = np.array([[1e6, 2e6, 4e6], [3.0, 1e-3, 2e-3]])
    scores = channel_scores(energies, np.zeros(2), np.ones(3))
    assert np.argmin(scores) == 1


def test_a_narrow_layer_is_not_emptied_before_a_wide_one():
    """Equal channels of equal cost: shares of what is left, not magnitudes, count."""
    narrow = scores_of(np.full(4, 1.0), np.full(4, 1.0))
    wide = scores_of(np.full(16, 1.0), np.full(16, 0.25))
    threshold = np.sort(np.concatenate([narrow, wide]))[9]
    kept = [(scores > threshold).mean() for scores in (narrow, wide)]
    assert kept == [0.5, 0.5]


def test_scores_grow_in_the_order_of_the_cut_whatever_the_costs():
    energies, costs = RNG.exponential(size=50), RNG.uniform(1, 9, size=50)
    scores = scores_of(energies, costs)
    assert (np.diff(scores[np.argsort(energies / costs)]) >= 0).all()


def test_what_has_no_energy_is_free():
    energies = np.array([0.0, 2.0, 0.0, 1.0])
    scores = scores_of(energies, np.ones(4))
    assert scores[0] == scores[2] == 0 < scores[3] < scores[1]
    scores = rank_scores(energies, np.arange(1.0, 5), 5.0)
    assert scores[0] == scores[2] == 0 < scores[3] < scores[1]
    for scores in (
        scores_of(np.zeros(3), np.ones(3)),
        rank_scores(np.zeros(3), np.arange(1.0, 4), 4.0),
    ):
        assert sorted(scores)[:2] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_by_any_threshold_are_the_best_for_what_they_save(seed):
    """No number of ranks has a smaller loss + threshold * cost, by trying them all."""
    rng = np.random.default_rng(seed)
    energies = rng.exponential(size=12) ** 2
    costs = np.where(np.arange(1, 13) < 8, 9.0 * np.arange(1, 13), np.inf)
    whole = 100.0
    scores = rank_scores(energies, costs, whole)
    ordered = np.sort(energies)
    options = {12: (whole, 0.0)}
    for left in range(1, 8):
        options[left] = (costs[left - 1], log_loss(ordered, slice(12 - left, None)))
    for low, high in itertools.pairwise(np.unique(scores[np.isfinite(scores)])):
        threshold = (low + high) / 2
        left = int((scores > threshold).sum())
        best = min(loss + threshold * cost for cost, loss in options.values())
        cost, loss = options[left]
        assert loss + threshold * cost == pytest.approx(best)


def test_the_first_ranks_go_together():
    """From one layer of 100 to two, of at most 63, and one rank after another."""
    costs = np.where(np.arange(1, 13) < 8, 9.0 * np.arange(1, 13), np.inf)
    scores = rank_scores(np.ones(12), costs, 100.0)
    values, counts = np.unique(scores, return_counts=True)
    assert counts[0] >= 5 and values[-1] == np.inf


def test_ranks_that_are_never_worth_two_layers_stay():
    scores = rank_scores(np.ones(4), np.full(4, np.inf), 100.0)
    assert (scores == np.inf).all()
    assert (rank_scores(np.ones(1), np.array([5.0]), 4.0) == np.inf).all()
