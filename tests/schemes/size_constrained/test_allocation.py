"""The sparse projection, compared with one sorted list of all weights."""

import numpy as np
import pytest

from tfcompress.schemes.size_constrained.allocation import keep_largest


def one_by_one(weights, bits, budget, floors):
    """`keep_largest` as the paper says it: one list of all weights, from the top."""
    keep = {name: np.zeros(w.size, bool) for name, w in weights.items()}
    for name, w in weights.items():
        order = np.argsort(-np.abs(w.ravel()), kind="stable")
        keep[name][order[: floors[name]]] = True
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
    floors = {name: int(rng.integers(0, 5)) for name in shapes} | {"none": 0}
    least = sum(bits[name] * floors[name] for name in shapes)
    most = sum(bits[name] * weights[name].size for name in shapes)
    return weights, bits, int(rng.integers(least, 1.1 * most)), floors


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_keeps_the_same_weights_as_one_sorted_list(seed, ties):
    weights, bits, budget, floors = random_layers(seed, ties)
    before = {name: w.copy() for name, w in weights.items()}
    masks = keep_largest(weights, bits, budget, floors)
    expected = one_by_one(weights, bits, budget, floors)
    assert list(masks) == list(weights)
    for name, mask in masks.items():
        assert mask.dtype == bool and mask.shape == weights[name].shape
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)
        np.testing.assert_array_equal(weights[name], before[name])
    spent = sum(bits[name] * mask.sum() for name, mask in masks.items())
    assert spent <= budget


@pytest.mark.parametrize("seed", range(10))
def test_fractions_of_bits_use_the_budget_up(seed):
    weights, bits, budget, floors = random_layers(seed)
    rng = np.random.default_rng(seed)
    bits = {name: value + rng.random() for name, value in bits.items()}
    least = sum(bits[name] * floors[name] for name in bits)
    most = sum(bits[name] * weights[name].size for name in bits)
    budget = rng.uniform(least, most)
    masks = keep_largest(weights, bits, budget, floors)
    expected = one_by_one(weights, bits, budget, floors)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)
    spent = sum(bits[name] * mask.sum() for name, mask in masks.items())
    assert budget - max(bits.values()) < spent <= budget


def test_cheap_weights_are_worth_more():
    weights = {"a": np.float32([2, 1]), "b": np.float32([3, -1.5])}
    masks = keep_largest(weights, {"a": 1, "b": 8}, 10, {"a": 0, "b": 0})
    # w^2 per bit: 4 and 1, 9/8 and 0.28. The last one does not fit.
    assert masks["a"].tolist() == [True, True] and masks["b"].tolist() == [True, False]
    masks = keep_largest(weights, {"a": 1, "b": 8}, 9, {"a": 0, "b": 0})
    assert masks["a"].tolist() == [True, False] and masks["b"].tolist() == [True, False]
    # The list ends at the first weight that does not fit, though a cheaper one would.
    masks = keep_largest(weights, {"a": 1, "b": 8}, 8, {"a": 0, "b": 0})
    assert masks["a"].tolist() == [True, False] and not masks["b"].any()


def test_equal_weights_stay_in_order():
    weights = {"a": np.full((2, 3), -0.5, "float32"), "b": np.full(4, 0.5, "float32")}
    floors = {"a": 0, "b": 1}
    masks = keep_largest(weights, {"a": 2, "b": 2}, 10, floors)
    assert masks["a"].ravel().tolist() == [True] * 4 + [False] * 2
    assert masks["b"].tolist() == [True, False, False, False]
    masks = keep_largest(weights, {"a": 2, "b": 2}, 17, floors)
    assert masks["a"].all() and masks["b"].tolist() == [True, True, False, False]


def test_the_list_ends_among_equals_too():
    """Both weights are worth 1 per bit; the first does not fit, so none is kept."""
    weights = {"a": np.float32([2]), "b": np.float32([1])}
    masks = keep_largest(weights, {"a": 4, "b": 1}, 3, {"a": 0, "b": 0})
    assert not masks["a"].any() and not masks["b"].any()


def test_zeros_stay_only_for_a_floor():
    weights = {"a": np.float32([0, 1e-45, 0, 0]), "b": np.zeros(3, "float32")}
    masks = keep_largest(weights, {"a": 1, "b": 1}, 100, {"a": 3, "b": 0})
    assert masks["a"].tolist() == [True, True, True, False]
    assert not masks["b"].any()


def test_floors_hold_where_weights_are_small():
    weights = {"a": np.float32([1e-9, 3e-9, 2e-9]), "b": np.float32([5, 6, 7, 8])}
    masks = keep_largest(weights, {"a": 4, "b": 4}, 16, {"a": 2, "b": 1})
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [False, False, True, True]
    for budget in (0, 11.5):
        masks = keep_largest(weights, {"a": 4, "b": 4}, budget, {"a": 2, "b": 1})
        assert masks["a"].tolist() == [False, True, True]
        assert masks["b"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("bits, budget, floors, message", [
    ({"a": 0, "b": 3}, 9, {"a": 1, "b": 1}, r"positive.*bits=0 for layer 'a'"),
    ({"a": 1, "b": 3}, 9, {"a": 1, "b": 5}, r"layer 'b' is 0 to 4.*floor=5"),
    ({"a": 1, "b": 3}, 9, {"a": -1, "b": 1}, r"layer 'a' is 0 to 3.*floor=-1"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(bits, budget, floors, message):
    weights = {"a": np.ones(3, "float32"), "b": np.ones(4, "float32")}
    with pytest.raises(ValueError, match=message):
        keep_largest(weights, bits, budget, floors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    weights = {"a": np.float32([1, 2]), "b": np.float32([1, bad, 3])}
    with pytest.raises(ValueError, match=r"finite. Received: (nan|inf) in layer 'b'"):
        keep_largest(weights, {"a": 1, "b": 1}, 3, {"a": 0, "b": 0})
