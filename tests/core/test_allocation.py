"""Which weights stay and with how many bits, against trying everything out."""

import itertools

import numpy as np
import pytest

from tfcompress.core.allocation import allocate_bits, keep_largest


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


def random_choices(seed, increasing):
    """Costs and losses of four layers, and a budget between all and nothing."""
    rng = np.random.default_rng(seed)
    costs, losses = {}, {}
    for name in "abcd":
        count = int(rng.integers(1, 7))
        costs[name] = rng.uniform(1, 100, count)
        losses[name] = rng.uniform(0, 10, count)
        if increasing:  # as bit-widths: less loss for more bits
            bits = np.arange(1, count + 1)
            costs[name] = bits * float(rng.integers(1, 100))
            losses[name] = rng.uniform(0.1, 10) * 4.0**-bits * rng.uniform(0.5, 2)
    least, most = (sum(f(costs[name]) for name in costs) for f in (min, max))
    return costs, losses, rng.uniform(least, 1.1 * most)


def total(numbers, chosen):
    return sum(numbers[name][index] for name, index in chosen.items())


def on_the_hull(costs, losses):
    """Choices that no mixture of two choices, or other choice, undercuts, by cost."""
    points = sorted(set(zip(costs, losses, strict=True)))
    return [
        (c, v)
        for c, v in points
        if not any(d <= c and w <= v for d, w in points if (d, w) != (c, v))
        and not any(
            w + (x - w) * (c - d) / (e - d) < v
            for (d, w), (e, x) in itertools.combinations(points, 2)
            if d < c < e
        )
    ]


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_allocation_is_optimal_up_to_one_increment(seed, increasing):
    costs, losses, budget = random_choices(seed, increasing)
    chosen = allocate_bits(costs, losses, budget)
    assert list(chosen) == list(costs)
    assert total(costs, chosen) <= budget * (1 + 1e-12)
    every = (
        dict(zip(costs, indices, strict=True))
        for indices in itertools.product(*(range(len(c)) for c in costs.values()))
    )
    best = min(
        total(losses, choice) for choice in every if total(costs, choice) <= budget
    )
    # From the top, in order of efficiency, up to the first increment that fails.
    hulls = {name: on_the_hull(costs[name], losses[name]) for name in costs}
    increments = sorted(
        ((w - v) / (c - d), c - d, v - w)
        for hull in hulls.values()
        for (d, v), (c, w) in itertools.pairwise(hull)
    )
    left = budget - sum(hull[0][0] for hull in hulls.values())
    gap = 0.0
    for _, cost, gain in increments:
        if cost > left:
            gap = gain
            break
        left -= cost
    received = total(losses, chosen)
    assert best - 1e-9 <= received <= best + gap + 1e-9
    for name, index in chosen.items():
        assert (costs[name][index], losses[name][index]) in hulls[name]


def test_allocation_finds_the_optimum_where_increments_are_alike():
    """Equal layers, one unit per bit: any budget can be spent to the last unit."""
    bits = np.arange(1, 9)
    costs = dict.fromkeys("abc", bits)
    losses = {"a": 4.0**-bits, "b": 30 * 4.0**-bits, "c": 900 * 4.0**-bits}
    for budget in range(3, 25):
        chosen = allocate_bits(costs, losses, budget)
        assert total(costs, chosen) == budget
        best = min(
            total(losses, dict(zip("abc", indices, strict=True)))
            for indices in itertools.product(range(8), repeat=3)
            if sum(indices) + 3 <= budget
        )
        assert total(losses, chosen) == pytest.approx(best)


def test_dominated_choices_are_never_taken():
    costs = {"a": [4, 1, 2, 3, 3, 5]}
    losses = {"a": [1.0, 9.0, 9.0, 7.0, 5.0, 1.0]}
    chosen = {
        budget: allocate_bits(costs, losses, budget)["a"] for budget in range(1, 7)
    }
    # Cost 2 is no better than cost 1, and 5 no better than 4; 3 is above the line.
    assert chosen == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0, 6: 0}


def test_a_layer_that_does_not_fit_leaves_the_rest_to_the_others():
    costs = {"big": [10, 100, 101], "small": [1, 2, 3]}
    losses = {"big": [1000, 10, 0], "small": [3, 2, 1]}
    assert allocate_bits(costs, losses, 50) == {"big": 0, "small": 2}
    assert allocate_bits(costs, losses, 103) == {"big": 2, "small": 1}


def test_what_gains_most_per_cost_comes_first():
    costs = {"big": [1, 101], "one": [1, 2], "two": [1, 2]}
    losses = {"big": [10, 0], "one": [9, 0], "two": [9, 0]}
    assert allocate_bits(costs, losses, 103) == {"big": 0, "one": 1, "two": 1}


def test_layers_without_a_choice_stay_as_they_are():
    costs, losses = {"a": [5.0], "b": [1.0, 2.0]}, {"a": [0.0], "b": [0.0, 0.0]}
    assert allocate_bits(costs, losses, 100.0) == {"a": 0, "b": 0}
    assert allocate_bits({}, {}, 0) == {}


def test_the_smallest_possible_budget_is_named():
    costs, losses = {"a": [3, 2], "b": [5.5, 9]}, {"a": [0, 1], "b": [1, 0]}
    assert allocate_bits(costs, losses, 7.5) == {"a": 1, "b": 0}
    with pytest.raises(ValueError, match=r"budget is 7\.5: .*Received: budget=7\."):
        allocate_bits(costs, losses, 7)


def test_off_the_hull_what_is_left_is_spent_and_no_more():
    """Often better than on the hull."""
    better = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        costs = {n: np.sort(rng.random(9)) * 10.0 ** rng.integers(0, 9) for n in "abcd"}
        losses = {n: np.sort(rng.random(9))[::-1] for n in costs}
        least = sum(x[0] for x in costs.values())
        budget = least + rng.random() * sum(np.ptp(x) for x in costs.values())
        chosen = allocate_bits(costs, losses, budget, off_hull=True)
        spent = sum(costs[n][i] for n, i in chosen.items())
        assert spent <= budget * (1 + 1e-12)
        on_hull = allocate_bits(costs, losses, budget)
        better += sum(losses[n][i] for n, i in chosen.items()) < sum(
            losses[n][i] for n, i in on_hull.items()
        )
    assert better > 30


def test_rounding_leaves_no_less_than_nothing():
    """What the increments sum up to is a little more than the budget."""
    a, b, more = 0.8 + 0.1, 0.2 + 0.1, 0.6 + 0.1
    costs = {"a": np.array([9e3, a, a + more]), "b": np.array([9e3, b])}
    losses = {"a": np.array([0.0, 1.0, 0.9]), "b": np.array([0.0, 1.0])}
    chosen = allocate_bits(costs, losses, more + a + b, off_hull=True)
    assert chosen == {"a": 2, "b": 1}
