"""Filters that a Lagrange multiplier finds, against all numbers of filters."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.schemes.bit_sharing.test_bit_allocation import bops_model_of, regret_of
from tfcompress.schemes.bit_sharing import bit_allocation
from tfcompress.schemes.bit_sharing.bit_allocation import allocate
from tfcompress.schemes.bit_sharing.filter_allocation import filters_within
from tfcompress.schemes.bit_sharing.learned_gates import (
    BitCandidates,
    FilterGroups,
    LearnedGates,
)


def chain(seed, length, groups):
    """Layers in a row, each of which reads the filters of the one before it."""
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(length)]
    macs = [int(x) for x in rng.integers(1000, 20_000, length)]
    bops_model = bops_model_of(
        *zip(names, macs, [None, *names[:-1]], [*names[:-1], None], strict=True)
    )

    def gated():
        costs = np.sort(rng.exponential(size=2))[::-1]
        return BitCandidates((2, 4, 8), costs)

    weights, activations = ({name: gated() for name in names} for _ in range(2))
    sizes = np.array([4] * (groups - 1) + [2])
    filters = {
        name: FilterGroups(groups * rng.exponential(0.5, groups), sizes, groups - 2)
        for name in names[:-1]
    }
    return bops_model, LearnedGates(weights, activations, filters)


def total_regret(gates, bits, open_groups):
    closed = sum(gates.filters[n].regret(~x) for n, x in open_groups.items())
    return regret_of(bits, gates) + closed


def least_regret(bops_model, gates, budget):
    """The least regret of all numbers of filters, each with its best bits."""
    found = []
    options = bit_allocation.layer_options(bops_model, gates)
    numbers = [range(x.fewest_open(), 7) for x in gates.filters.values()]
    for counts in itertools.product(*numbers):
        open_groups = {
            name: groups.surest(count)
            for (name, groups), count in zip(gates.filters.items(), counts, strict=True)
        }
        best = bit_allocation.best_bits(bops_model, gates, options, open_groups, budget)
        if best.bops <= budget:
            found.append(best.regret)
    return min(found)


def budget_of(share, bops_model, gates):
    return share * bops_model.total(dict.fromkeys(gates.weights, (8, 8)), {})


@pytest.mark.parametrize("share", [0.5, 0.2, 0.07])
@pytest.mark.parametrize("seed", range(4))
def test_bits_and_filters_cost_about_the_least(seed, share):
    bops_model, gates = chain(seed, length=4, groups=6)
    budget = budget_of(share, bops_model, gates)
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    assert bops <= budget
    least = least_regret(bops_model, gates, budget)
    assert total_regret(gates, bits, open_groups) <= 1.15 * least


@pytest.mark.parametrize("share", [0.2, 0.05])
@pytest.mark.parametrize("seed", [0])
def test_filters_of_many_layers_need_no_further_changes(seed, share, monkeypatch):
    bops_model, gates = chain(seed, length=20, groups=8)
    budget = budget_of(share, bops_model, gates)
    regrets = {}
    for changes in (0, 1000):
        monkeypatch.setattr(bit_allocation, "_MOST_CHANGES", changes)
        bits, open_groups, bops = allocate(bops_model, gates, budget)
        assert bops <= budget
        regrets[changes] = total_regret(gates, bits, open_groups)
    assert regrets[0] <= 1.05 * regrets[1000]


@pytest.mark.parametrize("cost", [1e8, 1e20])
def test_filters_close_at_any_cost_where_the_budget_asks_for_it(cost):
    bops_model, gates = chain(0, length=4, groups=6)
    filters = {
        name: dataclasses.replace(groups, margins=cost * groups.margins)
        for name, groups in gates.filters.items()
    }
    gates = dataclasses.replace(gates, filters=filters)
    lowest = bops_model.total(gates.lowest_bits(), {})
    open_groups = filters_within(bops_model, gates, 0.5 * lowest)
    kept = gates.kept(open_groups)
    assert bops_model.total(gates.lowest_bits(), kept) <= 0.5 * lowest


def test_as_few_filters_as_may_be_stay_where_no_allocation_fits():
    bops_model, gates = chain(0, length=4, groups=6)
    open_groups = filters_within(bops_model, gates, budget=1.0)
    assert {int(x.sum()) for x in open_groups.values()} == {2}


def test_all_filters_stay_within_a_budget_for_all():
    bops_model, gates = chain(0, length=4, groups=6)
    open_groups = filters_within(bops_model, gates, budget_of(1.0, bops_model, gates))
    assert {int(x.sum()) for x in open_groups.values()} == {6}
