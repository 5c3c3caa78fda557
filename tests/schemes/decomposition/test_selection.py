"""Selections on a network small enough to try all of them."""

import itertools

import numpy as np
import pytest

from tfcompress.schemes.decomposition.scoring import Scores
from tfcompress.schemes.decomposition.selection import (
    LEAST_KEPT,
    lowest_cost,
    select,
    select_above,
)


@pytest.fixture
def scores(channels):
    """Random scores of the channels of a and b, and of all ranks but those of c."""
    rng = np.random.default_rng(0)
    groups = np.full(len(channels.frozen), np.inf)
    sets = [channels.written["a"], channels.written["b"]]
    for members in sets:
        groups[members] = rng.uniform(size=len(members))
    ranks = {"a": rng.uniform(size=8), "b": rng.uniform(size=12), "c": np.ones(5)}
    return Scores(groups, sets, ranks)


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.12])
def test_a_selection_meets_the_budget_and_removes_the_lowest_scores(
    width_model, scores, unit, share
):
    model = width_model(unit, margin=0.7)
    budget = share * model.full_cost()
    selection = select(model, scores, budget)
    assert 0.85 * budget <= selection.cost <= budget
    ranks = {name: int(keep.sum()) for name, keep in selection.keep_ranks.items()}
    assert selection.cost == model.cost(selection.keep_groups, ranks)
    keep = selection.keep_groups
    for members in scores.group_sets:
        kept, removed = members[keep[members]], members[~keep[members]]
        assert len(kept) >= LEAST_KEPT * len(members)
        highest = scores.groups[removed].max(initial=-np.inf)
        assert highest < scores.groups[kept].min()
    assert not keep.all()
    assert keep[np.isinf(scores.groups)].all()


def test_a_layer_that_is_not_decomposed_keeps_its_ranks(width_model, scores):
    """At 0.3 of the scores few ranks of a layer go: too few for two layers."""
    model = width_model(margin=0.7)
    decomposed = {}
    for threshold in (0.3, 0.9):
        selection = select_above(threshold, model, scores)
        for name, keep in selection.keep_ranks.items():
            rank = int(keep.sum())
            is_decomposed = model.is_decomposed(name, selection.keep_groups, rank)
            assert keep.all() != is_decomposed
            decomposed[name, threshold] = is_decomposed
    assert (scores.ranks["b"] <= 0.3).any() and not decomposed["b", 0.3]
    assert decomposed["b", 0.9]


@pytest.mark.parametrize("multiple", [3, 4, 5])
def test_sets_of_channels_keep_a_multiple_or_all(width_model, scores, multiple):
    model = width_model()
    budget = 0.5 * model.full_cost()

    def widths(round_to):
        selection = select(model, scores, budget, round_to)
        assert selection.cost <= budget
        return [int(selection.keep_groups[x].sum()) for x in scores.group_sets]

    assert any(width % multiple for width in widths(1))
    for width, members in zip(widths(multiple), scores.group_sets, strict=True):
        assert width % multiple == 0 or width == len(members)
    assert sum(widths(multiple)) < 8 + 12


def test_no_selection_costs_less_than_the_lowest_cost(width_model, scores, keep_groups):
    model = width_model(margin=0.7)
    lowest = lowest_cost(model, scores)
    tried = [
        model.cost(keep_groups(a, b), {"a": r, "b": s, "c": t})
        for a, b, r, s, t in itertools.product((1, 8), (2, 12), (1, 8), (1, 12), (1, 5))
    ]
    assert lowest == pytest.approx(min(tried))
    assert select(model, scores, lowest).cost == lowest


def test_a_budget_of_the_full_cost_removes_nothing(width_model, scores):
    model = width_model()
    selection = select(model, scores, model.full_cost())
    assert selection.cost == model.full_cost()
    assert selection.keep_groups.all()
    assert all(keep.all() for keep in selection.keep_ranks.values())
