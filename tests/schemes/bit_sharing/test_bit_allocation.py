"""Bit allocations against an exhaustive search."""

import dataclasses
import itertools

import numpy as np
import pytest

from tfcompress.core.budget import SLACK
from tfcompress.schemes.bit_sharing.bit_allocation import (
    _BUCKETS,
    allocate,
    spend_rest,
)
from tfcompress.schemes.bit_sharing.bops_model import BopsModel, BopsTerm
from tfcompress.schemes.bit_sharing.learned_gates import (
    BitCandidates,
    FilterGroups,
    LearnedGates,
)

CANDIDATES = [(2, 4, 8), (2, 4), (4, 8), (8,)]


def bops_model_of(*terms):
    """`BopsModel` with terms of `(name, macs, reads, makes)`, without a model."""
    bops_model = object.__new__(BopsModel)
    bops_model.terms = [BopsTerm(*term) for term in terms]
    return bops_model


def gated(bits, *margins):
    return BitCandidates(bits, np.array(margins, "float32"))


def random_gated(rng):
    bits = CANDIDATES[rng.integers(len(CANDIDATES))]
    return gated(bits, *rng.normal(size=len(bits) - 1))


def random_instance(seed):
    """Three layers and one in float, and a budget around the range of the bits."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")
    macs = rng.integers(1000, 20_000, 3)
    terms = [(name, int(n), None, None) for name, n in zip(names, macs, strict=True)]
    bops_model = bops_model_of(*terms, ("float", int(rng.integers(1, 50)), None, None))
    weights = {name: random_gated(rng) for name in names}
    activations = {name: random_gated(rng) for name in names}
    gates = LearnedGates(weights, activations, {})
    totals = [total for total, _ in everything(bops_model, gates)]
    budget = np.exp(rng.uniform(np.log(0.9 * min(totals)), np.log(1.1 * max(totals))))
    return bops_model, gates, budget


def everything(bops_model, gates):
    """`[(BOPs, regret)]` of every allocation of bits."""
    weights, activations = gates.weights, gates.activations
    layers = [
        [
            ((w, a), weights[name].regret(i) + activations[name].regret(j))
            for i, w in enumerate(weights[name].bits)
            for j, a in enumerate(activations[name].bits)
        ]
        for name in weights
    ]
    return [
        (
            bops_model.total(
                dict(zip(weights, (bits for bits, _ in c), strict=True)), {}
            ),
            sum(regret for _, regret in c),
        )
        for c in itertools.product(*layers)
    ]


def regret_of(bits, gates):
    return sum(
        gates.weights[name].regret(gates.weights[name].bits.index(w))
        + gates.activations[name].regret(gates.activations[name].bits.index(a))
        for name, (w, a) in bits.items()
    )


@pytest.mark.parametrize("seed", range(40))
def test_bits_have_the_least_regret_that_uses_the_budget(seed):
    bops_model, gates, budget = random_instance(seed)
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    assert bops == bops_model.total(bits, {}) and open_groups == {}
    choices = everything(bops_model, gates)
    fitting = [total for total, _ in choices if total <= budget]
    if not fitting:
        assert bops == min(total for total, _ in choices) > budget
        return
    assert bops <= budget
    # Rounding to buckets may hide totals within `edge` of a bound.
    edge = len(bits) * budget / _BUCKETS
    lowest, highest = (1 - SLACK) * budget, budget
    inside = [r for total, r in choices if lowest + edge <= total <= highest - edge]
    around = [r for total, r in choices if lowest - edge <= total <= highest]
    if inside:
        assert lowest <= bops
        regret = regret_of(bits, gates)
        assert min(around) - 1e-9 <= regret <= min(inside) + 1e-9
    else:
        assert bops >= max(
            t for t in fitting if t <= highest - edge or t == min(fitting)
        )


def test_random_instances_cover_budgets_that_fit_and_budgets_that_do_not():
    kinds = {"none fits": 0, "in the window": 0, "below it": 0}
    for seed in range(40):
        bops_model, gates, budget = random_instance(seed)
        totals = [t for t, _ in everything(bops_model, gates)]
        best = max((t for t in totals if t <= budget), default=0)
        near = "in the window" if best >= (1 - SLACK) * budget else "below it"
        kinds[near if best else "none fits"] += 1
    assert min(kinds.values()) >= 2 and kinds["in the window"] >= 15, kinds


@pytest.mark.parametrize("margins, learned", [
    ((-1, 1), 0), ((1, -1), 1), ((1, 1), 2), ((-1, -1), 0), ((0, 1), 0),
])  # fmt: skip
def test_learned_bits_end_at_the_first_closed_gate(margins, learned):
    one = gated((2, 4, 8), *margins)
    assert one.learned() == learned
    assert one.regret(learned) == 0
    assert all(one.regret(i) > 0 for i in range(3) if i != learned)


def test_regret_is_the_sum_of_the_margins_that_are_overruled():
    one = gated((2, 4, 8), 0.3, 0.5)
    assert one.regret(1) == pytest.approx(0.5, abs=0.01)
    assert one.regret(0) == pytest.approx(0.8, abs=0.01)
    one = gated((2, 4, 8), -0.3, 0.5)
    assert one.regret(1) == pytest.approx(0.3, abs=0.01)
    # The second gate is open already and waits for the first.
    assert one.regret(2) == pytest.approx(0.3, abs=0.01)


def test_without_a_budget_the_gates_decide_within_the_bound_on_closed_groups():
    weights = {"a": gated((8,)), "b": gated((2, 4, 8), 1, -1)}
    activations = {"a": gated((8,)), "b": gated((2, 4), -1)}
    margins, sizes = np.array([-0.1, -0.3, 0.2, -0.2, -0.4]), np.array([2, 2, 2, 2, 1])
    filters = {"a": FilterGroups(margins, sizes, 3)}
    gates = LearnedGates(weights, activations, filters)
    assert gates.learned_bits() == {"a": (8, 8), "b": (4, 2)}
    # Three may close, so the surest of the four that want to stays open.
    is_open = gates.learned_groups()["a"]
    assert is_open.tolist() == [True, False, True, False, False]


def two_layers(most_closed, groups=10):
    """`b` reads the filters of `a`; all gates are open."""
    rng = np.random.default_rng(0)
    bops_model = bops_model_of(("a", 5000, None, "a"), ("b", 9000, "a", None))
    weights = {"a": gated((8,)), "b": gated((2, 4, 8), 1, 1)}
    activations = {"a": gated((8,)), "b": gated((2, 4, 8), 1, 1)}
    filters = FilterGroups(rng.uniform(0.1, 1, groups), np.full(groups, 4), most_closed)
    return bops_model, LearnedGates(weights, activations, {"a": filters})


@pytest.mark.parametrize("most_closed", [0, 3, 7])
@pytest.mark.parametrize("share", [0.6, 0.4, 0.2])
def test_filters_close_where_the_lowest_bits_exceed_the_budget(share, most_closed):
    bops_model, gates = two_layers(most_closed)
    margins = gates.filters["a"].margins
    lowest = {"a": (8, 8), "b": (2, 2)}
    budget = share * bops_model.total(lowest, {})
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    is_open = open_groups["a"]
    closed = int((~is_open).sum())
    assert closed <= most_closed
    # The least important ones, and no more than needed.
    assert not closed or margins[~is_open].max() < margins[is_open].min()
    needed = int(np.ceil(10 * (1 - share) - 1e-9))
    assert closed == min(needed, most_closed)
    assert bops == pytest.approx(bops_model.total(bits, {"a": 1 - closed / 10}))
    assert (bops <= budget) == (most_closed >= needed)


@pytest.mark.parametrize("share", [1.0, 1.2, 2.0])
def test_filters_close_in_place_of_bits_of_more_regret(share):
    """The regret is the least of all numbers of filters and bits in the window."""
    bops_model, gates = two_layers(most_closed=35, groups=50)
    margins = gates.filters["a"].margins
    lowest = {"a": (8, 8), "b": (2, 2)}
    budget = share * bops_model.total(lowest, {})
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    received = regret_of(bits, gates)
    received += margins[~open_groups["a"]].sum() / 50
    ranked = np.sort(margins)
    regrets = []
    for closed in range(36):
        for choice in itertools.product((2, 4, 8), (2, 4, 8)):
            every = {"a": (8, 8), "b": choice}
            total = bops_model.total(every, {"a": 1 - closed / 50})
            if 0.98 * budget <= total <= budget:
                regret = regret_of(every, gates)
                regrets.append(regret + ranked[:closed].sum() / 50)
    assert 0.98 * budget <= bops <= budget
    assert received == pytest.approx(min(regrets), abs=0.02)


@pytest.mark.parametrize("start", [-1, 1], ids=["closed", "open"])
def test_filters_open_or_close_up_to_the_budget_where_bits_have_no_choice(start):
    bops_model, gates = two_layers(most_closed=75, groups=100)
    filters = gates.filters["a"]
    margins = filters.margins
    single = {"a": gated((8,)), "b": gated((8,))}
    full = bops_model.total({"a": (8, 8), "b": (8, 8)}, {})
    filters = dataclasses.replace(filters, margins=start * margins)
    gates = LearnedGates(single, single, {"a": filters})
    bits, open_groups, bops = allocate(bops_model, gates, 0.555 * full)
    assert bits == {"a": (8, 8), "b": (8, 8)}
    assert open_groups["a"].sum() == 55
    order = np.argsort(-start * margins)
    assert open_groups["a"][order[:55]].all()
    assert (1 - SLACK) * 0.555 * full <= bops <= 0.555 * full


@pytest.mark.parametrize("seed", range(15))
def test_bits_and_filters_together_meet_every_budget_that_can_be_met(seed):
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c", "d")
    macs = rng.integers(1000, 20_000, 4)
    bops_model = bops_model_of(
        ("a", int(macs[0]), None, "a"), ("b", int(macs[1]), "a", "b"),
        ("c", int(macs[2]), "b", None), ("d", int(macs[3]), None, None),
    )  # fmt: skip
    weights, activations = ({n: random_gated(rng) for n in names} for _ in range(2))
    filters = {
        name: FilterGroups(
            rng.normal(0.5, 1, 12), np.array([4] * 11 + [2]), most_closed
        )
        for name, most_closed in (("a", 9), ("b", 5))
    }
    gates = LearnedGates(weights, activations, filters)
    lowest = gates.lowest_bits()
    highest = {n: (weights[n].bits[-1], activations[n].bits[-1]) for n in names}
    budget = rng.uniform(
        0.6 * bops_model.total(lowest, {}), bops_model.total(highest, {})
    )
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    kept = {}
    for name, groups in filters.items():
        assert (~open_groups[name]).sum() <= groups.most_closed
        kept[name] = groups.sizes[open_groups[name]].sum() / groups.sizes.sum()
    assert bops == pytest.approx(bops_model.total(bits, kept))
    smallest = {}
    for name, groups in filters.items():
        order = np.argsort(groups.margins)[groups.most_closed :]
        smallest[name] = groups.sizes[order].sum() / groups.sizes.sum()
    if bops_model.total(lowest, smallest) <= budget:
        assert (1 - SLACK) * budget <= bops <= budget


def test_rest_of_a_budget_opens_the_gates_of_least_regret():
    bops_model = bops_model_of(*((n, 1000, None, None) for n in ("a", "b", "c")))
    weights = {"a": gated((4, 8), -0.3), "b": gated((4, 8), -0.1), "c": gated((4,))}
    activations = dict.fromkeys(weights, gated((2, 4), -0.2))
    gates = LearnedGates(weights, activations, {})
    bits = dict.fromkeys(weights, (4, 2))
    budget = bops_model.total({"a": (4, 2), "b": (8, 4), "c": (4, 4)}, {})
    wider = spend_rest(bits, {}, bops_model, gates, budget)
    # b's weights (8 x 2), then a's inputs, then b's or c's as far as that goes.
    assert wider["b"][0] == 8 and wider["a"] == (4, 4)
    assert bops_model.total(wider, {}) <= budget
    exact = bops_model.total(dict.fromkeys(weights, (4, 4)), {})
    learned = {**bits, "a": (4, 4), "b": (4, 4)}
    wider = spend_rest(learned, {}, bops_model, gates, exact)
    assert bops_model.total(wider, {}) == exact


@pytest.mark.parametrize("seed", range(20))
def test_no_wider_bits_fit_into_the_rest_of_a_budget(seed):
    bops_model, gates, budget = random_instance(seed)
    bits, open_groups, bops = allocate(bops_model, gates, budget)
    wider = spend_rest(bits, open_groups, bops_model, gates, budget)
    if bops > budget:
        assert wider == bits
        return
    for name, (w, a) in wider.items():
        assert w >= bits[name][0] and a >= bits[name][1]
        for pair in [(x, a) for x in gates.weights[name].bits if x > w] + [
            (w, x) for x in gates.activations[name].bits if x > a
        ]:
            assert bops_model.total({**wider, name: pair}, {}) > budget
