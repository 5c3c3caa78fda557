"""Choices of bits and filters, against trying everything out."""

import itertools

import numpy as np
import pytest

from tfcompress.core.budget import SLACK
from tfcompress.schemes.bit_sharing.bit_allocation import _BUCKETS, Gated, choose, fill
from tfcompress.schemes.bit_sharing.bops_model import BopsModel, BopsTerm

CANDIDATES = [(2, 4, 8), (2, 4), (4, 8), (8,)]


def bops_model_of(*terms):
    """Of `(name, macs, reads, makes)`, without a model."""
    bops_model = object.__new__(BopsModel)
    bops_model.terms = [BopsTerm(*term) for term in terms]
    return bops_model


def gated(bits, *margins):
    return Gated(bits, np.array(margins, "float32"))


def random_gated(rng):
    bits = CANDIDATES[rng.integers(len(CANDIDATES))]
    return gated(bits, *rng.normal(size=len(bits) - 1))


def random_instance(seed):
    """Three layers and one in float, and a budget between what bits can reach."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")
    macs = rng.integers(1000, 20_000, 3)
    terms = [(name, int(n), None, None) for name, n in zip(names, macs, strict=True)]
    bops_model = bops_model_of(*terms, ("float", int(rng.integers(1, 50)), None, None))
    weights = {name: random_gated(rng) for name in names}
    activations = {name: random_gated(rng) for name in names}
    totals = [total for total, _ in everything(bops_model, weights, activations)]
    budget = np.exp(rng.uniform(np.log(0.9 * min(totals)), np.log(1.1 * max(totals))))
    return bops_model, weights, activations, budget


def everything(bops_model, weights, activations):
    """`[(BOPs, regret)]` of every choice of bits."""
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


def regret_of(bits, weights, activations):
    return sum(
        weights[name].regret(weights[name].bits.index(w))
        + activations[name].regret(activations[name].bits.index(a))
        for name, (w, a) in bits.items()
    )


@pytest.mark.parametrize("seed", range(40))
def test_bits_are_the_least_regret_that_uses_the_budget(seed):
    bops_model, weights, activations, budget = random_instance(seed)
    bits, open_groups, bops = choose(bops_model, weights, activations, {}, budget)
    assert bops == bops_model.total(bits, {}) and open_groups == {}
    choices = everything(bops_model, weights, activations)
    fitting = [total for total, _ in choices if total <= budget]
    if not fitting:
        assert bops == min(total for total, _ in choices) > budget
        return
    assert bops <= budget
    # Rounding to buckets may hide what lies within `edge` of a bound.
    edge = len(weights) * budget / _BUCKETS
    lowest, highest = (1 - SLACK) * budget, budget
    inside = [r for total, r in choices if lowest + edge <= total <= highest - edge]
    around = [r for total, r in choices if lowest - edge <= total <= highest]
    if inside:
        assert lowest <= bops
        regret = regret_of(bits, weights, activations)
        assert min(around) - 1e-9 <= regret <= min(inside) + 1e-9
    else:
        assert bops >= max(
            t for t in fitting if t <= highest - edge or t == min(fitting)
        )


def test_random_instances_are_of_all_kinds():
    """Or the test above would prove little."""
    kinds = {"none fits": 0, "in the window": 0, "below it": 0}
    for seed in range(40):
        bops_model, weights, activations, budget = random_instance(seed)
        totals = [t for t, _ in everything(bops_model, weights, activations)]
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


def test_regret_is_how_far_gates_are_moved_against_their_margins():
    one = gated((2, 4, 8), 0.3, 0.5)
    assert one.regret(1) == pytest.approx(0.5, abs=0.01)
    assert one.regret(0) == pytest.approx(0.8, abs=0.01)
    one = gated((2, 4, 8), -0.3, 0.5)
    assert one.regret(1) == pytest.approx(0.3, abs=0.01)
    # The second is open already: it only waits for the first.
    assert one.regret(2) == pytest.approx(0.3, abs=0.01)


def test_without_a_budget_the_gates_decide_but_for_what_has_to_stay():
    bops_model = bops_model_of(("a", 100, None, "a"), ("b", 200, "a", None))
    weights = {"a": gated((8,)), "b": gated((2, 4, 8), 1, -1)}
    activations = {"a": gated((8,)), "b": gated((2, 4), -1)}
    margins, sizes = np.array([-0.1, -0.3, 0.2, -0.2, -0.4]), np.array([2, 2, 2, 2, 1])
    bits, open_groups, bops = choose(
        bops_model, weights, activations, {"a": (margins, sizes, 3)}, None
    )
    assert bits == {"a": (8, 8), "b": (4, 2)}
    # Three may close, so the surest of the four that want to stays open.
    assert open_groups["a"].tolist() == [True, False, True, False, False]
    assert bops == pytest.approx((100 * 8 * 8 + 200 * 4 * 2) * 4 / 9)


def two_layers(rng, groups=10):
    """`b` reads the filters of `a`; all gates are open."""
    bops_model = bops_model_of(("a", 5000, None, "a"), ("b", 9000, "a", None))
    weights = {"a": gated((8,)), "b": gated((2, 4, 8), 1, 1)}
    activations = {"a": gated((8,)), "b": gated((2, 4, 8), 1, 1)}
    margins = rng.uniform(0.1, 1, groups)
    return bops_model, weights, activations, margins, np.full(groups, 4)


@pytest.mark.parametrize("most_closed", [0, 3, 7])
@pytest.mark.parametrize("share", [0.6, 0.4, 0.2])
def test_filters_close_where_the_lowest_bits_are_too_many(share, most_closed):
    rng = np.random.default_rng(0)
    bops_model, weights, activations, margins, sizes = two_layers(rng)
    lowest = {"a": (8, 8), "b": (2, 2)}
    budget = share * bops_model.total(lowest, {})
    bits, open_groups, bops = choose(
        bops_model, weights, activations, {"a": (margins, sizes, most_closed)}, budget
    )
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
def test_filters_close_rather_than_bits_that_are_worth_more(share):
    """The least regret of all numbers of filters and bits that use the budget."""
    rng = np.random.default_rng(0)
    bops_model, weights, activations, margins, sizes = two_layers(rng, groups=50)
    lowest = {"a": (8, 8), "b": (2, 2)}
    budget = share * bops_model.total(lowest, {})
    filters = {"a": (margins, sizes, 35)}
    bits, open_groups, bops = choose(bops_model, weights, activations, filters, budget)
    received = regret_of(bits, weights, activations)
    received += margins[~open_groups["a"]].sum() / 50
    ranked = np.sort(margins)
    regrets = []
    for closed in range(36):
        for choice in itertools.product((2, 4, 8), (2, 4, 8)):
            every = {"a": (8, 8), "b": choice}
            total = bops_model.total(every, {"a": 1 - closed / 50})
            if 0.98 * budget <= total <= budget:
                regret = regret_of(every, weights, activations)
                regrets.append(regret + ranked[:closed].sum() / 50)
    assert 0.98 * budget <= bops <= budget
    assert received == pytest.approx(min(regrets), abs=0.02)


@pytest.mark.parametrize("start", [-1, 1], ids=["closed", "open"])
def test_filters_fill_what_bits_cannot(start):
    """One choice of bits only: filters open again, or close, up to the budget."""
    rng = np.random.default_rng(0)
    bops_model, _, _, margins, sizes = two_layers(rng, groups=100)
    single = {"a": gated((8,)), "b": gated((8,))}
    full = bops_model.total({"a": (8, 8), "b": (8, 8)}, {})
    bits, open_groups, bops = choose(
        bops_model, single, single, {"a": (start * margins, sizes, 75)}, 0.555 * full
    )
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
        name: (rng.normal(0.5, 1, 12), np.array([4] * 11 + [2]), most_closed)
        for name, most_closed in (("a", 9), ("b", 5))
    }
    lowest = {n: (weights[n].bits[0], activations[n].bits[0]) for n in names}
    highest = {n: (weights[n].bits[-1], activations[n].bits[-1]) for n in names}
    budget = rng.uniform(
        0.6 * bops_model.total(lowest, {}), bops_model.total(highest, {})
    )
    bits, open_groups, bops = choose(bops_model, weights, activations, filters, budget)
    kept = {}
    for name, (_, sizes, most_closed) in filters.items():
        assert (~open_groups[name]).sum() <= most_closed
        kept[name] = sizes[open_groups[name]].sum() / sizes.sum()
    assert bops == pytest.approx(bops_model.total(bits, kept))
    smallest = {}
    for name, (margins, sizes, most_closed) in filters.items():
        order = np.argsort(margins)[most_closed:]
        smallest[name] = sizes[order].sum() / sizes.sum()
    if bops_model.total(lowest, smallest) <= budget:
        assert (1 - SLACK) * budget <= bops <= budget


def test_what_is_left_of_a_budget_opens_the_nearest_gates():
    """Two of four upgrades fit: one exactly, to the last unit of the budget."""
    bops_model = bops_model_of(*((n, 1000, None, None) for n in ("a", "b", "c")))
    gates = {"a": gated((4, 8), -0.3), "b": gated((4, 8), -0.1), "c": gated((4,))}
    activations = dict.fromkeys(gates, gated((2, 4), -0.2))
    bits = dict.fromkeys(gates, (4, 2))
    budget = bops_model.total({"a": (4, 2), "b": (8, 4), "c": (4, 4)}, {})
    filled = fill(bits, bops_model, gates, activations, {}, {}, budget)
    # b's weights (8 x 2), then a's inputs, then b's or c's as far as that goes.
    assert filled["b"][0] == 8 and filled["a"] == (4, 4)
    assert bops_model.total(filled, {}) <= budget
    exact = bops_model.total(dict.fromkeys(gates, (4, 4)), {})
    learned = {**bits, "a": (4, 4), "b": (4, 4)}
    filled = fill(learned, bops_model, gates, activations, {}, {}, exact)
    assert bops_model.total(filled, {}) == exact


@pytest.mark.parametrize("seed", range(20))
def test_nothing_more_fits_afterwards(seed):
    bops_model, weights, activations, budget = random_instance(seed)
    bits, _, bops = choose(bops_model, weights, activations, {}, budget)
    filled = fill(bits, bops_model, weights, activations, {}, {}, budget)
    if bops > budget:
        assert filled == bits
        return
    for name, (w, a) in filled.items():
        assert w >= bits[name][0] and a >= bits[name][1]
        for wider in [(x, a) for x in weights[name].bits if x > w] + [
            (w, x) for x in activations[name].bits if x > a
        ]:
            assert bops_model.total({**filled, name: wider}, {}) > budget
