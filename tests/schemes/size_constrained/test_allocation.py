"""Allocation of a budget; the sparse projection against a sorted list of weights."""

import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import (
    BUDGETS,
    SIZES,
    counts,
    move,
    new_space,
    used,
)
from tfcompress.schemes.size_constrained.allocation import keep_largest, set_smallest
from tfcompress.schemes.size_constrained.rate_distortion import operating_points


def one_by_one(weights, bits, budget, min_counts):
    """`keep_largest` as in the paper: one list of all weights, from the top."""
    keep = {name: np.zeros(w.size, bool) for name, w in weights.items()}
    for name, w in weights.items():
        order = np.argsort(-np.abs(w.ravel()), kind="stable")
        keep[name][order[: min_counts[name]]] = True
    spent = sum(bits[name] * keep[name].sum() for name in weights)
    entries = [
        (-(float(value) ** 2) / bits[name], number, index, name)
        for number, (name, w) in enumerate(weights.items())
        for index, value in enumerate(w.ravel())
    ]
    for negative_key, _, index, name in sorted(entries):
        if keep[name][index]:
            continue
        if negative_key == 0 or spent + bits[name] > budget:
            break
        keep[name][index] = True
        spent += bits[name]
    return {name: keep[name].reshape(w.shape) for name, w in weights.items()}


def random_layers(seed, ties=False):
    rng = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 2, 4), "dense": (10, 7), "vector": (9,), "none": (0,)}
    weights = {
        name: (rng.normal(size=shape) * rng.uniform(0.1, 3)).astype("float32")
        for name, shape in shapes.items()
    }
    if ties:
        weights = {name: np.round(2 * w) for name, w in weights.items()}
    bits = {name: int(rng.integers(1, 9)) for name in shapes}
    min_counts = {name: int(rng.integers(0, 5)) for name in shapes} | {"none": 0}
    least = sum(bits[name] * min_counts[name] for name in shapes)
    most = sum(bits[name] * weights[name].size for name in shapes)
    return weights, bits, int(rng.integers(least, 1.1 * most)), min_counts


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_sparse_projection_keeps_the_weights_of_one_sorted_list(seed, ties):
    weights, bits, budget, min_counts = random_layers(seed, ties)
    before = {name: w.copy() for name, w in weights.items()}
    masks = keep_largest(weights, bits, budget, min_counts)
    expected = one_by_one(weights, bits, budget, min_counts)
    assert list(masks) == list(weights)
    for name, mask in masks.items():
        assert mask.dtype == bool and mask.shape == weights[name].shape
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)
        np.testing.assert_array_equal(weights[name], before[name])
    spent = sum(bits[name] * mask.sum() for name, mask in masks.items())
    assert spent <= budget


@pytest.mark.parametrize("seed", range(10))
def test_sparse_projection_with_fractional_bits_uses_the_budget_up(seed):
    weights, bits, budget, min_counts = random_layers(seed)
    rng = np.random.default_rng(seed)
    bits = {name: value + rng.random() for name, value in bits.items()}
    least = sum(bits[name] * min_counts[name] for name in bits)
    most = sum(bits[name] * weights[name].size for name in bits)
    budget = rng.uniform(least, most)
    masks = keep_largest(weights, bits, budget, min_counts)
    expected = one_by_one(weights, bits, budget, min_counts)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)
    spent = sum(bits[name] * mask.sum() for name, mask in masks.items())
    assert budget - max(bits.values()) < spent <= budget


def test_sparse_projection_orders_weights_by_square_per_bit():
    weights = {"a": np.float32([2, 1]), "b": np.float32([3, -1.5])}
    masks = keep_largest(weights, {"a": 1, "b": 8}, 10, {"a": 0, "b": 0})
    # w^2 per bit: 4 and 1, 9/8 and 0.28. The last one does not fit.
    assert masks["a"].tolist() == [True, True] and masks["b"].tolist() == [True, False]
    masks = keep_largest(weights, {"a": 1, "b": 8}, 9, {"a": 0, "b": 0})
    assert masks["a"].tolist() == [True, False] and masks["b"].tolist() == [True, False]
    # The list ends at the first weight that does not fit, though a cheaper one would.
    masks = keep_largest(weights, {"a": 1, "b": 8}, 8, {"a": 0, "b": 0})
    assert masks["a"].tolist() == [True, False] and not masks["b"].any()


def test_sparse_projection_keeps_the_first_of_equal_weights():
    weights = {"a": np.full((2, 3), -0.5, "float32"), "b": np.full(4, 0.5, "float32")}
    min_counts = {"a": 0, "b": 1}
    masks = keep_largest(weights, {"a": 2, "b": 2}, 10, min_counts)
    assert masks["a"].ravel().tolist() == [True] * 4 + [False] * 2
    assert masks["b"].tolist() == [True, False, False, False]
    masks = keep_largest(weights, {"a": 2, "b": 2}, 17, min_counts)
    assert masks["a"].all() and masks["b"].tolist() == [True, True, False, False]


def test_sparse_projection_ends_at_the_first_of_equals_that_does_not_fit():
    """Both weights have a square of 1 per bit; only the second would fit."""
    weights = {"a": np.float32([2]), "b": np.float32([1])}
    masks = keep_largest(weights, {"a": 4, "b": 1}, 3, {"a": 0, "b": 0})
    assert not masks["a"].any() and not masks["b"].any()


def test_sparse_projection_keeps_zeros_only_among_the_least_weights():
    weights = {"a": np.float32([0, 1e-45, 0, 0]), "b": np.zeros(3, "float32")}
    masks = keep_largest(weights, {"a": 1, "b": 1}, 100, {"a": 3, "b": 0})
    assert masks["a"].tolist() == [True, True, True, False]
    assert not masks["b"].any()


def test_sparse_projection_keeps_the_least_weights_of_layers_of_small_weights():
    weights = {"a": np.float32([1e-9, 3e-9, 2e-9]), "b": np.float32([5, 6, 7, 8])}
    masks = keep_largest(weights, {"a": 4, "b": 4}, 16, {"a": 2, "b": 1})
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [False, False, True, True]
    for budget in (0, 11.5):
        masks = keep_largest(weights, {"a": 4, "b": 4}, budget, {"a": 2, "b": 1})
        assert masks["a"].tolist() == [False, True, True]
        assert masks["b"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("bits, budget, min_counts, message", [
    ({"a": 0, "b": 3}, 9, {"a": 1, "b": 1}, r"positive.*bits=0 for layer 'a'"),
    ({"a": 1, "b": 3}, 9, {"a": 1, "b": 5}, r"layer 'b' is 0 to 4.*min_count=5"),
    ({"a": 1, "b": 3}, 9, {"a": -1, "b": 1}, r"layer 'a' is 0 to 3.*min_count=-1"),
])  # fmt: skip
def test_sparse_projection_refuses_bad_costs_and_counts(
    bits, budget, min_counts, message
):
    weights = {"a": np.ones(3, "float32"), "b": np.ones(4, "float32")}
    with pytest.raises(ValueError, match=message):
        keep_largest(weights, bits, budget, min_counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sparse_projection_refuses_weights_that_are_not_finite(bad):
    weights = {"a": np.float32([1, 2]), "b": np.float32([1, bad, 3])}
    with pytest.raises(ValueError, match=r"finite. Received: (nan|inf) in layer 'b'"):
        keep_largest(weights, {"a": 1, "b": 1}, 3, {"a": 0, "b": 0})


def test_start_takes_the_budget_and_nearly_all_of_it(started):
    space, codebooks = started, started.codebooks
    sparse = space.allocation.budget.sparse
    # The next container of the widest layer takes 600 of 1700 bytes.
    assert (0.95 if sparse else 0.65) < used(space) <= 1
    assert all(width in codebooks.bit_widths for width in codebooks.bits.values())
    for name, count in counts(codebooks).items():
        assert count >= (codebooks.min_counts()[name] if sparse else SIZES[name])


def test_start_keeps_the_largest_weights(started_sparse):
    codebooks = started_sparse.codebooks
    assert sum(counts(codebooks).values()) < sum(SIZES.values())
    for name, mask in codebooks.masks().items():
        magnitudes = np.abs(codebooks.kernels()[name])
        if not mask.all():
            assert magnitudes[mask].min() >= magnitudes[~mask].max()


def test_start_leaves_the_latent_kernels_as_they_are(started):
    before = new_space("bytes").codebooks.kernels()
    for name, kernel in started.codebooks.kernels().items():
        np.testing.assert_array_equal(kernel, before[name])


def test_tightening_removes_weights_until_the_budget_is_met(started_sparse):
    """Those with the least square per bit; removed weights stay at zero."""
    space, codebooks = started_sparse, started_sparse.codebooks
    move(codebooks)
    space.admm.project(space.allocation, factor=3.0)
    kept = [sum(counts(codebooks).values())]
    for step, factor in enumerate((2.0, 1.4, 1.0, 1.0), start=2):
        move(codebooks, step, size=0.1)
        before, held = codebooks.kernels(), codebooks.masks()
        space.allocation.tighten(factor)
        for name, mask in codebooks.masks().items():
            kernel = codebooks.kernels()[name]
            np.testing.assert_array_equal(kernel, before[name] * mask)
            assert not (mask & ~held[name]).any()
            if mask.sum() > codebooks.min_counts()[name]:
                gone = np.abs(before[name][held[name] & ~mask])
                assert gone.max(initial=0.0) <= np.abs(before[name][mask]).min()
        kept.append(sum(counts(codebooks).values()))
    assert kept[0] >= kept[1] > kept[2] >= kept[3] >= kept[4]
    assert 0.85 < used(space) < 1.1


@pytest.mark.parametrize("min_gain", [0.1, 0.5])
def test_tightening_changes_bits_only_for_the_least_gain(started_sparse, min_gain):
    """The present bits would lose more, for the same number of nominal bits."""
    space, codebooks = started_sparse, started_sparse.codebooks
    move(codebooks)
    masks, before, points = codebooks.masks(), codebooks.bits, {}
    for name, kernel in codebooks.kernels().items():
        points[name] = operating_points(
            kernel * masks[name],
            codebooks.min_counts()[name],
            space.allocation.budget,
            codebooks.bit_widths,
        )
    space.allocation.tighten(min_gain=min_gain)
    for name, kept in counts(codebooks).items():
        costs, losses, bits = points[name].costs, points[name].losses, points[name].bits
        now = codebooks.bits[name]
        chosen = (points[name].kept == kept) & (bits == now)
        assert chosen.any()
        same = (bits == before[name]) & (costs <= costs[chosen])
        if now != before[name] and same.any():
            assert losses[chosen] <= (1 - min_gain) * losses[same].min()


@pytest.mark.parametrize("exact, low, high", [(True, 0.98, 1.0), (False, 0.5, 0.8)])
def test_exact_sizes_do_not_depend_on_estimates(
    exact, low, high, start_once, monkeypatch
):
    space = start_once("xz, uniform")
    budget = space.allocation.budget
    monkeypatch.setattr("tfcompress.schemes.size_constrained.budget._FAST_FROM", 0)
    budget.total *= 0.8
    budget.xz_per_fast *= 1.4  # of other codes
    space.allocation.tighten(exact=exact)
    assert low < used(space) <= high


@pytest.mark.parametrize("name", BUDGETS)
def test_smallest_allocation_keeps_the_least_weights_with_the_fewest_bits(name):
    space = new_space(name)
    codebooks = space.codebooks
    set_smallest(codebooks)
    assert counts(codebooks) == codebooks.min_counts()
    assert set(codebooks.bits.values()) == {codebooks.bit_widths[0]}
    for layer, mask in codebooks.masks().items():
        magnitudes = np.abs(codebooks.kernels()[layer])
        if not mask.all():
            assert magnitudes[mask].min() >= magnitudes[~mask].max()
    assert used(space) < 0.8


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_shrinking_removes_the_smallest_weights_alone(started_sparse, share):
    space, codebooks = started_sparse, started_sparse.codebooks
    budget, before = space.allocation.budget, codebooks.codes()
    masks = {name: codes != 0 for name, (codes, _) in before.items()}
    size, bits = budget.size_of(before), codebooks.bits
    space.allocation.shrink(share)
    assert codebooks.bits == bits
    for name, mask in codebooks.masks().items():
        assert not (mask & ~masks[name]).any()
        magnitudes, codes = np.abs(codebooks.kernels()[name]), codebooks.codes()[name]
        np.testing.assert_array_equal(codes[0], before[name][0] * mask)
        taken = masks[name] & ~mask
        assert magnitudes[mask].min() >= magnitudes[taken].max(initial=0)
    # An xz file has about 70 bytes that are no data.
    left = budget.size_of(codebooks.codes())
    assert (share - 0.1) * size < left < (share + 0.1) * size + 70


def test_shrinking_ends_at_the_least_weights_and_restores_none(start_once):
    """Also where fewer weights than the least number are not zero."""
    space = start_once("value bits, uniform")
    codebooks = space.codebooks
    few = np.arange(72).reshape(3, 3, 8, 1) < 4
    codebooks.quantizers["depthwise"].mask.assign(few)
    kept = {name: codes != 0 for name, (codes, _) in codebooks.codes().items()}
    for share in (0.5, 1e-9, 1e-9):
        space.allocation.shrink(share)
        left = {name: codes != 0 for name, (codes, _) in codebooks.codes().items()}
        assert not any((left[name] & ~kept[name]).any() for name in kept)
    least = codebooks.min_counts()
    assert counts(codebooks) == {n: min(least[n], x.sum()) for n, x in kept.items()}
    assert counts(codebooks)["depthwise"] <= 4


def test_shrinking_removes_bits_where_zeros_save_nothing(start_once):
    space = start_once("bytes")
    before, masks = used(space), counts(space.codebooks)
    space.allocation.shrink(0.8)
    assert 0.5 * before < used(space) <= 0.8 * before
    assert counts(space.codebooks) == masks


def test_budget_affords_all_weights_from_their_share_on(start_once):
    space = start_once("value bits, kmeans")
    bits = space.codebooks.bits
    share = sum(bits[name] * size for name, size in SIZES.items()) / 1500
    assert space.allocation.affords_all(1.01 * share)
    assert not space.allocation.affords_all(0.99 * share)
