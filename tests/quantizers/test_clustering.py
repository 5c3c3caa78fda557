"""Codebooks against optimal clusterings, dense scans and rounding value by value."""

import numpy as np
import pytest

from tfcompress.quantizers.clustering import (
    SortedNonZeros,
    counts_and_distortions,
    kmeans,
    nearest,
    snapped,
    uniform_step,
)
from tfcompress.quantizers.packing import code_limit

DRAWS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "laplace": lambda rng, size: rng.laplace(size=size),
    "heavy": lambda rng, size: rng.standard_t(2, size),
    "negative": lambda rng, size: -1 - rng.random(size),
    "positive": lambda rng, size: 3 + rng.random(size),
    "pruned": lambda rng, size: (w := rng.normal(size=size)) * (np.abs(w) > 1),
    "outliers": lambda rng, size: np.append(rng.normal(size=size - 2), [-500, 300]),
    "tiny": lambda rng, size: 1e-20 * rng.normal(size=size),
}
EVERY_DRAW = pytest.mark.parametrize("draw", DRAWS)


def weights(draw, size, seed=0):
    return DRAWS[draw](np.random.default_rng(seed), size).astype("float32")


def squared_error(x, quantized):
    return np.square(np.asarray(x, np.float64) - quantized).sum()


def optimal_distortion(x, count):
    """The least distortion of contiguous clusterings with `count` means and one zero.

    Dynamic programming over the sorted values: `best[z, k, i]` is the least error of
    the first i values in k cells with a mean and z at zero.
    """
    x = np.sort(np.asarray(x, np.float64))
    size = len(x)
    best = np.full((2, count + 1, size + 1), np.inf)
    best[:, :, 0] = 0
    for end in range(1, size + 1):
        for first in range(end):
            cell = x[first:end]
            to_mean, to_zero = (
                np.square(cell - cell.mean()).sum(),
                np.square(cell).sum(),
            )
            best[:, 1:, end] = np.minimum(
                best[:, 1:, end], best[:, :-1, first] + to_mean
            )
            best[1, :, end] = np.minimum(best[1, :, end], best[0, :, first] + to_zero)
    return best[:, count, size].min()


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 3, 4, 5)])
def test_sorted_non_zeros_match_numpy_cell_by_cell(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32") * (rng.random(shape) > 0.3)
    values = SortedNonZeros(x)
    expected = np.sort(x[x != 0])
    assert values.values.dtype == np.float32 and len(values) == len(expected)
    np.testing.assert_array_equal(values.values, expected)
    cuts = np.float32([[-0.5, 0.0, 0.2], [-9, 9, 9]])
    centroids = np.array([[-0.7, -0.1, 0.1, 1.0], [1.0, 0.0, 2.0, 3.0]])
    bounds = values.bounds(cuts)
    means = values.means(bounds, empty=centroids)
    distortion = values.distortion(bounds, centroids)
    for row in range(2):
        cells = np.split(expected, np.searchsorted(expected, cuts[row]))
        np.testing.assert_array_equal(np.diff(bounds[row]), [len(c) for c in cells])
        pairs = list(zip(cells, centroids[row], strict=True))
        np.testing.assert_allclose(
            means[row], [c.mean(dtype=float) if c.size else e for c, e in pairs]
        )
        np.testing.assert_allclose(
            distortion[row], sum(squared_error(c, e) for c, e in pairs)
        )
    if len(values):
        assert values.mean_magnitude() == pytest.approx(np.abs(expected).mean())


def test_large_values_do_not_reduce_the_precision_of_small_ones():
    small = np.random.default_rng(0).normal(size=1000).astype("float32")
    values = SortedNonZeros(np.append(small, np.float32([-1e12, 1e12])))
    bounds = values.bounds(np.float32([-100, 100]))
    np.testing.assert_allclose(values.means(bounds, 0.0)[1], small.mean(dtype=float))
    received = values.distortion(bounds, np.float32([-1e12, 0.5, 1e12]))
    np.testing.assert_allclose(received, squared_error(small, 0.5))


def test_distortion_is_never_negative():
    centroids = (0.1 * np.arange(-50, 51)).astype("float32")
    values = SortedNonZeros(np.repeat(centroids, 7))
    bounds = values.bounds((centroids[1:] + centroids[:-1]) / 2)
    assert 0 <= values.distortion(bounds, centroids) < 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sorted_non_zeros_refuses_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"finite.*Received: .*(nan|inf)"):
        SortedNonZeros([1.0, bad, 0.0, -2.0])


def test_nearest_has_the_least_of_all_distances():
    rng = np.random.default_rng(0)
    centroids = np.sort(rng.normal(size=17)).astype("float32")
    x = rng.normal(size=(50, 40)).astype("float32")
    distances = np.abs(x[..., None].astype(float) - centroids)
    np.testing.assert_array_equal(
        nearest(x, centroids), centroids[np.argmin(distances, axis=-1)]
    )
    half_way = np.float32([-0.5, 0.5, 1.5])
    np.testing.assert_array_equal(
        nearest(half_way, np.float32([-1, 0, 1, 2])), [0, 1, 2]
    )
    # The middle of neighboring floats rounds to one of them.
    neighbors = np.float32([1, 1 + 2**-23, 1 + 2**-22])
    np.testing.assert_array_equal(nearest(neighbors, neighbors), neighbors)


@EVERY_DRAW
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_kmeans_returns_the_distortion_of_its_codebook(draw, bits):
    x = weights(draw, 3000).reshape(30, 100)
    centroids, distortion = kmeans(SortedNonZeros(x), bits)
    assert centroids.dtype == np.float32 and centroids.size <= 2**bits + 1
    assert 0 in centroids and (np.diff(centroids) > 0).all()
    quantized = nearest(x, centroids)
    assert isinstance(distortion, float)
    np.testing.assert_allclose(distortion, squared_error(x, quantized), rtol=1e-6)
    assert set(np.unique(quantized[x != 0])) | {0} == set(centroids)


@EVERY_DRAW
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_kmeans_converges_to_a_fixed_point_with_zero_pinned(draw, bits):
    x = weights(draw, 2000)
    x = x[x != 0].astype(np.float64)
    centroids, _ = kmeans(SortedNonZeros(x), bits, rounds=10_000, tolerance=0)
    cells = np.abs(x[:, None] - centroids).argmin(axis=1)
    means = [
        x[cells == k].mean() if centroid else 0 for k, centroid in enumerate(centroids)
    ]
    np.testing.assert_allclose(centroids, means, rtol=1e-5)


@EVERY_DRAW
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_near_the_optimal_clustering(draw, bits, seed):
    x = weights(draw, 45, seed)
    x = x[x != 0]
    _, distortion = kmeans(SortedNonZeros(x), bits)
    optimum = optimal_distortion(x, 2**bits)
    assert distortion >= optimum * (1 - 1e-6)
    assert distortion <= 2 * optimum


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_kmeans_reaches_the_distortion_bound_for_normal_weights(bits):
    """The bound of Panter and Dite: sqrt(3) pi / 2 / levels^2 of the variance."""
    size, levels = 100_000, 2**bits + 1
    _, distortion = kmeans(SortedNonZeros(weights("normal", size)), bits)
    expected = size * np.sqrt(3) * np.pi / 2 / levels**2
    assert 0.9 * expected < distortion < 1.1 * expected


def test_kmeans_stops_when_rounds_gain_little():
    values = SortedNonZeros(weights("normal", 20_000))
    _, stopped = kmeans(values, 5)
    _, converged = kmeans(values, 5, rounds=2000, tolerance=0)
    assert converged < stopped < 1.03 * converged


@pytest.mark.parametrize("x, bits, expected", [
    ([], 3, [0]), ([0, 0], 3, [0]), ([-2.5], 1, [-2.5, 0]), ([7, 7, 7], 8, [0, 7]),
    ([1, 0, -3, 1, 1], 1, [-3, 0, 1]), ([-1, -2, -3, -4, -3], 2, [-4, -3, -2, -1, 0]),
    (np.arange(-127, 128), 8, np.arange(-127, 128)),
])  # fmt: skip
def test_kmeans_is_exact_with_a_centroid_for_each_value(x, bits, expected):
    centroids, distortion = kmeans(SortedNonZeros(x), bits)
    assert centroids.dtype == np.float32 and distortion == 0.0
    np.testing.assert_array_equal(centroids, expected)


def test_kmeans_assigns_values_near_zero_to_zero():
    x = np.repeat([-1.0, 0.01, 0.02, 1.0], [50, 3, 2, 50])
    centroids, distortion = kmeans(SortedNonZeros(x), 1)
    np.testing.assert_array_equal(centroids, [-1, 0, 1])
    np.testing.assert_allclose(distortion, 3 * 0.01**2 + 2 * 0.02**2, rtol=1e-6)


def test_kmeans_removes_centroids_without_values():
    """3, a centroid of linspace(-9, 9), has no values, because 1 is nearer to zero."""
    centroids, distortion = kmeans(SortedNonZeros([-9, -6, -1, 1, 9]), 2)
    np.testing.assert_array_equal(centroids, [-9, -6, 0, 9])
    assert distortion == 2


def test_kmeans_splits_cells_where_linspace_has_no_centroids():
    """Nearly all centroids of the paper's start lie between 1 and 10 000."""
    rng = np.random.default_rng(0)
    x = np.append(rng.uniform(-1, 1, 5000), [-10_000, 10_000])
    _, distortion = kmeans(SortedNonZeros(x), 6)
    step = 2 / (2**6 - 2 + 1)  # two centroids for the outliers, and one at zero
    assert distortion < 1.1 * 5000 * step**2 / 12


@EVERY_DRAW
@pytest.mark.parametrize("size", [20, 2000])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_uniform_step_is_the_best_of_a_dense_scan(draw, size, bits):
    x = weights(draw, size).astype(np.float64)
    limit = code_limit(bits)

    def error(step):
        return squared_error(x, step * np.clip(np.round(x / step), -limit, limit))

    step, distortion = uniform_step(SortedNonZeros(x), bits)
    assert step.dtype == np.float32 and step > 0 and isinstance(distortion, float)
    np.testing.assert_allclose(distortion, error(np.float64(step)), rtol=1e-6)
    largest = np.abs(x).max()
    scan = np.geomspace(0.01 * largest / limit, 2 * largest, 3000)
    # With 8 bits and 20 weights, some step happens to fit most weights.
    tolerance = 1.3 if bits == 8 else 1.001
    assert distortion <= tolerance * min(error(step) for step in scan)


@pytest.mark.parametrize("x, bits, expected", [
    ([3, -3, 3, 0], 2, 3), ([-0.5], 2, 0.5), ([1, 2, 3], 3, 1), ([4, -8, 4, 8], 3, 4),
])  # fmt: skip
def test_uniform_step_is_that_of_values_on_a_grid(x, bits, expected):
    step, distortion = uniform_step(SortedNonZeros(x), bits)
    assert step == pytest.approx(expected, rel=1e-5)
    assert distortion == pytest.approx(0, abs=1e-9)


def test_uniform_step_lets_small_values_round_to_zero():
    x = np.repeat([1.0, -1.0, 0.1, -0.2], [30, 40, 2, 3])
    step, distortion = uniform_step(SortedNonZeros(x), 2)
    assert step == pytest.approx(1, rel=1e-5)
    assert distortion == pytest.approx(2 * 0.1**2 + 3 * 0.2**2, rel=1e-5)


@pytest.mark.parametrize("x", [[], [0.0, 0.0], [1e-45, -1e-45]])
def test_uniform_step_is_positive_without_weights(x):
    step, distortion = uniform_step(SortedNonZeros(x), 8)
    assert step.dtype == np.float32 and step > 0 and distortion < 1e-80


@pytest.mark.parametrize("search, bits, bounds", [
    (kmeans, 0, "1 to 8"), (kmeans, 9, "1 to 8"), (kmeans, 2.5, "1 to 8"),
    (uniform_step, 1, "no level except zero.*"), (uniform_step, 9, "2 to 8"),
])  # fmt: skip
def test_codebook_searches_refuse_bits_out_of_range(search, bits, bounds):
    with pytest.raises(ValueError, match=rf"{bounds}.*Received: bits={bits}"):
        search(SortedNonZeros([1.0, 2.0]), bits)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 5, 17])
def test_snapped_codebook_is_as_good_as_the_best_step(size, seed, counted):
    rng = np.random.default_rng(seed)
    centroids = np.append(rng.normal(size=size - 1), 0).astype("float32")
    counts = rng.integers(1, 100, size) if counted else np.ones(size)
    levels, step = snapped(centroids, counts if counted else None)
    assert levels.dtype == np.int8 and step.dtype == np.float32
    assert 0 in levels and (np.diff(levels) > 0).all() and np.abs(levels).max() <= 127

    def error(codes, step):
        return (counts * np.square(centroids - codes * np.float64(step))).sum()

    largest = np.abs(centroids.astype(np.float64)).max()
    steps = np.linspace(largest / 127, largest / 64, 2000)
    least = min(error(np.round(centroids / s), s) for s in steps)
    chosen = nearest(centroids, levels * step)
    received = (counts * np.square(centroids - chosen.astype(np.float64))).sum()
    assert received <= 1.05 * least + 1e-12


def test_snapped_keeps_centroids_that_are_on_a_grid():
    centroids = np.float32(0.3) * np.float32([-127, -3, 0, 8, 100])
    levels, step = snapped(centroids)
    np.testing.assert_array_equal(levels, [-127, -3, 0, 8, 100])
    assert step == pytest.approx(0.3)
    levels, step = snapped([-0.5, 0.0])
    np.testing.assert_allclose(levels * step, [-0.5, 0], rtol=1e-6)
    # Equal levels are merged, and zero is always a level.
    assert len(snapped([1.0, 1.0001, 1e-6])[0]) == 2
    assert 0 in snapped([1.0, -2.0])[0]
    for nothing in ([], [0.0]):
        levels, step = snapped(nothing)
        assert levels.tolist() == [0] and levels.dtype == np.int8 and step > 0


@EVERY_DRAW
@pytest.mark.parametrize("codebook, first", [("uniform", 2), ("kmeans", 1)])
@pytest.mark.parametrize("size", [50, 500])
def test_counts_and_distortions_are_those_of_a_codebook(draw, codebook, first, size):
    x = weights(draw, size)
    values, widths = SortedNonZeros(x), tuple(range(first, 9))
    found = counts_and_distortions(values, widths, codebook)
    for bits, (counts, distortion) in zip(widths, found, strict=True):
        if codebook == "uniform":
            step, best = uniform_step(values, bits)
            if size == 500:  # for few weights the best step is a coincidence
                assert distortion == pytest.approx(best, rel=0.3)
            assert len(counts) == 2 * code_limit(bits)
        else:
            centroids, best = kmeans(values, bits)
            quantized = nearest(x, centroids)
            assert distortion == pytest.approx(squared_error(x, quantized), rel=1e-3)
            levels = centroids[centroids != 0]
            expected = [(quantized == level).sum() for level in levels]
            np.testing.assert_array_equal(counts, expected)
        assert counts.sum() <= len(values)


def test_counts_and_distortions_refuses_an_unknown_codebook():
    with pytest.raises(ValueError, match="uniform, kmeans. Received: 'lloyd'"):
        counts_and_distortions(SortedNonZeros([1.0]), (2, 4), "lloyd")


@pytest.mark.parametrize("codebook", ["uniform", "kmeans"])
def test_counts_and_distortions_without_values_are_zero(codebook):
    found = counts_and_distortions(SortedNonZeros([]), (2, 8), codebook)
    assert len(found) == 2
    for counts, distortion in found:
        assert not counts.any() and distortion == 0
