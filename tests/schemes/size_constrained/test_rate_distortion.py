"""Operating points, compared with kernels that are quantized accordingly."""

import numpy as np
import pytest

from tfcompress.cost.knapsack import multiple_choice_knapsack
from tfcompress.quantizers.clustering import (
    SAMPLES,
    SortedNonZeros,
    counts_and_distortions,
)
from tfcompress.schemes.size_constrained.allocation import largest
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.rate_distortion import (
    layer_loss,
    operating_points,
)

WIDTHS = {"uniform": (2, 3, 4, 8), "kmeans": (1, 2, 4)}


def kernel(size=3000, seed=0, zeros=0.3):
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=size) * (rng.random(size) > zeros)).astype("float32")


def points_of(w, unit, codebook="uniform", min_count=10, samples=SAMPLES):
    budget = SizeBudget(1000, unit, codebook)
    return operating_points(w, min_count, budget, WIDTHS[codebook], samples), budget


def quantized(w, kept, bits, budget, codebook="uniform"):
    """`(nominal bits, squared error)` of a kernel with so many weights and bits."""
    masked = w * largest(w, kept)
    values = SortedNonZeros(masked)
    [(counts, distortion)] = counts_and_distortions(values, [bits], codebook)
    dropped = np.square(w - masked, dtype=np.float64).sum()
    return budget.rate(counts, w.size, bits), dropped + distortion


@pytest.mark.parametrize("unit, codebook", [
    ("xz_bytes", "uniform"), ("xz_bytes", "kmeans"),
    ("value_bits", "uniform"), ("value_bits", "kmeans"),
])  # fmt: skip
def test_operating_points_predict_cost_and_distortion(unit, codebook):
    w = kernel()
    points, budget = points_of(w.reshape(30, 100), unit, codebook)
    assert points.kept.max() == np.count_nonzero(w) and points.kept.min() == 10
    assert set(points.bits) == set(WIDTHS[codebook])
    for i in range(0, len(points.kept), 7):
        kept, bits = points.kept[i], points.bits[i]
        cost, lost = quantized(w, kept, bits, budget, codebook)
        # With few weights the number of levels in use varies.
        tolerance = 0.15 if kept > 300 else 0.5
        assert points.costs[i] == pytest.approx(cost, rel=tolerance), (kept, bits)
        assert points.distortions[i] == pytest.approx(lost, rel=0.05, abs=0.5)
    np.testing.assert_array_equal(points.losses, layer_loss(points.distortions, w))


def test_layer_loss_is_small_errors_and_grows_without_bound():
    w = np.array([3.0, -4.0, 0.0, 0.0])  # of energy 25
    losses = layer_loss(np.array([0.0, 12.5, 18.75, 24.75]), w)
    np.testing.assert_allclose(losses, 25 * np.log([1, 2, 4, 100]))
    np.testing.assert_allclose(layer_loss(1e-4, w), 1e-4, rtol=1e-5)
    assert layer_loss(25.0, w) > layer_loss(24.99, w) and np.isfinite(layer_loss(25, w))


def test_layer_loss_keeps_a_layer_of_small_weights_that_distortions_empty():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 20_000)).astype("float32")
    points = {
        name: points_of(scale * w, "xz_bytes")[0]
        for name, scale, w in zip(("small", "large"), (0.4, 1.0), weights, strict=True)
    }

    def kept(losses, bits_per_weight):
        costs = {name: x.costs for name, x in points.items()}
        chosen = multiple_choice_knapsack(costs, losses, bits_per_weight * weights.size)
        return [int(points[name].kept[i]) for name, i in chosen.items()]

    small, large = kept({name: x.losses for name, x in points.items()}, 0.3)
    assert 100 < small < large
    small, large = kept({name: x.distortions for name, x in points.items()}, 0.3)
    assert small < 50 < large


def test_operating_points_keep_all_weights_where_zeros_save_nothing():
    points, _ = points_of(kernel(), "bytes")
    assert points.kept.tolist() == [3000] * 4 and points.bits.tolist() == [2, 3, 4, 8]
    assert points.costs.tolist() == [6000, 12000, 12000, 24000]
    assert (np.diff(points.losses) < 0).all()


def test_operating_points_of_large_kernels_follow_from_a_sample():
    w = kernel(40_000)
    every, _ = points_of(w, "xz_bytes")
    some, _ = points_of(w, "xz_bytes", samples=5000)
    np.testing.assert_array_equal(some.kept, every.kept)
    many = every.kept > 2000
    np.testing.assert_allclose(some.costs[many], every.costs[many], rtol=0.05)
    np.testing.assert_allclose(
        some.distortions, every.distortions, rtol=0.1, atol=3e-4 * np.square(w).sum()
    )


@pytest.mark.parametrize("w", [
    np.zeros(50), np.full(50, 0.5), np.eye(7), np.arange(4.0),
])  # fmt: skip
def test_operating_points_of_kernels_with_few_distinct_weights(w):
    least = min(10, w.size)
    points, _ = points_of(w, "xz_bytes", min_count=least)
    assert points.kept.min() == least
    assert points.kept.max() == max(least, np.count_nonzero(w))
    assert np.isfinite(points.costs).all() and np.isfinite(points.losses).all()
    assert points.distortions.max() <= np.square(w).sum()


def test_knapsack_off_the_hull_keeps_a_layer_whose_hull_has_a_gap():
    """A few of evenly distributed weights gain almost no loss, and many a lot."""
    rng = np.random.default_rng(0)
    large = rng.uniform(-0.07, 0.07, 100_000).astype("float32")
    points = {
        name: points_of(w, "xz_bytes")[0]
        for name, w in (("large", large), ("small", kernel(1000)))
    }
    costs = {name: x.costs for name, x in points.items()}
    losses = {name: x.losses for name, x in points.items()}
    for budget in (20_000, 50_000, 80_000):
        chosen = multiple_choice_knapsack(costs, losses, budget, off_hull=True)
        spent = sum(costs[name][i] for name, i in chosen.items())
        assert 0.9 * budget < spent <= budget
        assert points["large"].kept[chosen["large"]] > 1000


@pytest.mark.parametrize("share, bits", [(0.8, 8), (0.4, 4), (0.06, 2), (0.02, 2)])
def test_best_operating_point_has_fewer_bits_for_smaller_budgets(share, bits):
    """With 6.4, 3.2, 0.5 and 0.2 bits a weight: ternary for the smallest.

    It is also the best of all that are tried one by one.
    """
    w = kernel(zeros=0.0)
    points, budget = points_of(w, "xz_bytes")
    allowed = share * 8 * w.size
    costs, losses = {"a": points.costs}, {"a": points.losses}
    chosen = multiple_choice_knapsack(costs, losses, allowed)["a"]
    assert points.bits[chosen] == bits
    cost, least = quantized(w, points.kept[chosen], bits, budget)
    assert cost <= 1.02 * allowed
    for kept in np.geomspace(20, w.size, 15).astype(int):
        for other in WIDTHS["uniform"]:
            cost, lost = quantized(w, kept, other, budget)
            assert lost >= 0.97 * least or cost > allowed
