"""Knapsack over layers, compared with trying all choices."""

import itertools

import numpy as np
import pytest

from tfcompress.cost.knapsack import multiple_choice_knapsack


def random_choices(seed, increasing):
    """Costs and losses of four layers, and a budget between the extremes."""
    rng = np.random.default_rng(seed)
    costs, losses = {}, {}
    for name in "abcd":
        count = int(rng.integers(1, 7))
        costs[name] = rng.uniform(1, 100, count)
        losses[name] = rng.uniform(0, 10, count)
        if increasing:  # bit-widths: less loss for more bits
            bits = np.arange(1, count + 1)
            costs[name] = bits * float(rng.integers(1, 100))
            losses[name] = rng.uniform(0.1, 10) * 4.0**-bits * rng.uniform(0.5, 2)
    least, most = (sum(f(costs[name]) for name in costs) for f in (min, max))
    return costs, losses, rng.uniform(least, 1.1 * most)


def total(numbers, chosen):
    return sum(numbers[name][index] for name, index in chosen.items())


def on_the_hull(costs, losses):
    """Choices that no other choice, and no mixture of two, undercuts, by cost."""
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
    chosen = multiple_choice_knapsack(costs, losses, budget)
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
        chosen = multiple_choice_knapsack(costs, losses, budget)
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
        budget: multiple_choice_knapsack(costs, losses, budget)["a"]
        for budget in range(1, 7)
    }
    # Cost 2 is no better than cost 1, and 5 no better than 4; 3 is above the line.
    assert chosen == {1: 1, 2: 1, 3: 1, 4: 0, 5: 0, 6: 0}


def test_budget_that_one_layer_cannot_use_goes_to_the_others():
    costs = {"big": [10, 100, 101], "small": [1, 2, 3]}
    losses = {"big": [1000, 10, 0], "small": [3, 2, 1]}
    assert multiple_choice_knapsack(costs, losses, 50) == {"big": 0, "small": 2}
    assert multiple_choice_knapsack(costs, losses, 103) == {"big": 2, "small": 1}


def test_increments_with_the_most_loss_per_cost_come_first():
    costs = {"big": [1, 101], "one": [1, 2], "two": [1, 2]}
    losses = {"big": [10, 0], "one": [9, 0], "two": [9, 0]}
    assert multiple_choice_knapsack(costs, losses, 103) == {
        "big": 0,
        "one": 1,
        "two": 1,
    }


def test_layers_with_one_useful_choice_take_the_cheapest():
    costs, losses = {"a": [5.0], "b": [1.0, 2.0]}, {"a": [0.0], "b": [0.0, 0.0]}
    assert multiple_choice_knapsack(costs, losses, 100.0) == {"a": 0, "b": 0}
    assert multiple_choice_knapsack({}, {}, 0) == {}


def test_error_names_the_smallest_possible_budget():
    costs, losses = {"a": [3, 2], "b": [5.5, 9]}, {"a": [0, 1], "b": [1, 0]}
    assert multiple_choice_knapsack(costs, losses, 7.5) == {"a": 1, "b": 0}
    with pytest.raises(ValueError, match=r"budget is 7\.5: .*Received: budget=7\."):
        multiple_choice_knapsack(costs, losses, 7)


def test_choices_off_the_hull_spend_the_rest_of_the_budget_and_no_more():
    """Such choices are often better than those on the hull."""
    better = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        costs = {n: np.sort(rng.random(9)) * 10.0 ** rng.integers(0, 9) for n in "abcd"}
        losses = {n: np.sort(rng.random(9))[::-1] for n in costs}
        least = sum(x[0] for x in costs.values())
        budget = least + rng.random() * sum(np.ptp(x) for x in costs.values())
        chosen = multiple_choice_knapsack(costs, losses, budget, off_hull=True)
        spent = sum(costs[n][i] for n, i in chosen.items())
        assert spent <= budget * (1 + 1e-12)
        on_hull = multiple_choice_knapsack(costs, losses, budget)
        better += sum(losses[n][i] for n, i in chosen.items()) < sum(
            losses[n][i] for n, i in on_hull.items()
        )
    assert better > 30


def test_rounding_does_not_make_the_rest_of_the_budget_negative():
    """The sum of the increments exceeds the budget by a rounding error."""
    a, b, more = 0.8 + 0.1, 0.2 + 0.1, 0.6 + 0.1
    costs = {"a": np.array([9e3, a, a + more]), "b": np.array([9e3, b])}
    losses = {"a": np.array([0.0, 1.0, 0.9]), "b": np.array([0.0, 1.0])}
    chosen = multiple_choice_knapsack(costs, losses, more + a + b, off_hull=True)
    assert chosen == {"a": 2, "b": 1}
