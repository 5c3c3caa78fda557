"""Projections of ADMM on kernels of all kinds, against their definitions."""

import copy
import functools

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.layers import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from tfcompress.quantizers import Codebook
from tfcompress.quantizers.clustering import SortedNonZeros, counts_and_distortions
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.scheme import BIT_WIDTHS
from tfcompress.schemes.size_constrained.search_space import SizeSpace

SIZES = {
    "conv": 3 * 3 * 2 * 8, "depthwise": 3 * 3 * 8,
    "wide": 8 * 300, "narrow": 300 * 3, "few": 3 * 2,
}  # fmt: skip
# (counted, codebook, total)
BUDGETS = {
    "xz, uniform": ("xz_bytes", "uniform", 500),
    "xz, kmeans": ("xz_bytes", "kmeans", 500),
    "value bits, uniform": ("value_bits", "uniform", 1500),
    "value bits, kmeans": ("value_bits", "kmeans", 1500),
    "bytes": ("bytes", "uniform", 1700),
}
SPARSE = [name for name in BUDGETS if name != "bytes"]


def with_codebook(kind, *args, **kwargs):
    return kind(*args, kernel_quantizer=Codebook(), use_bias=False, **kwargs)


def network():
    """Kernels of different kinds, lengths and tails; one with 6 weights."""
    x = inputs = keras.Input((6, 6, 2))
    x = with_codebook(QuantConv2D, 8, 3, name="conv")(x)
    x = with_codebook(QuantDepthwiseConv2D, 3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    for name, units in (("wide", 300), ("narrow", 3), ("few", 2)):
        x = with_codebook(QuantDense, units, name=name)(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    for scale, name in zip((1.0, 0.5, 0.05, 0.2, 3.0), SIZES, strict=True):
        kernel = model.get_layer(name).latent_kernel
        kernel.assign(scale * rng.laplace(size=kernel.shape))
    return model


def space_and_budget(name):
    counted, codebook, total = BUDGETS[name]
    widths = BIT_WIDTHS[codebook, counted != "bytes"]
    space = SizeSpace(network(), codebook, widths)
    space.budget = SizeBudget(total, counted, codebook)
    return space, space.budget


@pytest.fixture(scope="module")
def start_once():
    """Function from a budget's name to `(space, budget)` after `start`."""

    @functools.cache
    def start(name):
        space, budget = space_and_budget(name)
        space.start()
        return space, budget, [np.array(v) for v in variables(space)]

    def restored(name):
        space, budget, values = start(name)
        for variable, value in zip(variables(space), values, strict=True):
            variable.assign(value)
        space.budget = copy.copy(budget)
        return space, space.budget

    return restored


def variables(space):
    return [variable for layer in space.layers.values() for variable in layer.weights]


@pytest.fixture(params=BUDGETS)
def started(request, start_once):
    return start_once(request.param)


@pytest.fixture(params=SPARSE)
def started_sparse(request, start_once):
    return start_once(request.param)


def move(space, seed=1, size=0.3):
    """Each kernel as training leaves it: dense, and somewhere else."""
    rng = np.random.default_rng(seed)
    for layer in space.layers.values():
        w = np.array(layer.latent_kernel)
        layer.latent_kernel.assign(w + size * w.std() * rng.normal(size=w.shape))


def scale_kernels(space, factors):
    for name, factor in factors.items():
        kernel = space.layers[name].latent_kernel
        kernel.assign(factor * np.array(kernel))


def counts(space):
    return {name: int(mask.sum()) for name, mask in space.masks().items()}


def nominal(space, budget):
    return sum(budget.nominal(space.codes()).values())


def state(space):
    """`{name: (W, V - U, U)}`, float64."""
    return {
        name: [
            np.array(x, "float64")
            for x in (layer.latent_kernel, layer.kernel_quantizer.anchor,
                      layer.kernel_quantizer.dual)
        ]
        for name, layer in space.layers.items()
    }  # fmt: skip


def distinct(values):
    """Ascending, without those that only differ by rounding."""
    values = np.unique(values)
    apart = np.diff(values, prepend=-np.inf) > 1e-4 * np.abs(values).max()
    return values[apart]


def test_it_takes_all_layers_with_a_codebook():
    space, _ = space_and_budget("bytes")
    assert {name: kernel.size for name, kernel in space.kernels().items()} == SIZES
    assert space.floors() == {**dict.fromkeys(SIZES, 10), "few": 6}
    assert not space.is_frozen()
    space.freeze()
    assert space.is_frozen()


def test_the_start_takes_the_budget_and_nearly_all_of_it(started):
    space, budget = started
    used = budget.size_of(space.codes()) / budget.total
    # The next container of the widest layer takes 600 of 1700 bytes.
    assert (0.95 if budget.sparse else 0.65) < used <= 1
    assert all(width in space.bit_widths for width in space.bits.values())
    for name, count in counts(space).items():
        assert count >= (space.floors()[name] if budget.sparse else SIZES[name])


def test_the_start_has_v_equal_to_w_and_no_dual(started):
    for kernel, anchor, dual in state(started[0]).values():
        np.testing.assert_array_equal(anchor, kernel)
        assert not dual.any()


def test_the_start_keeps_the_largest_weights(started_sparse):
    space, _ = started_sparse
    for name, mask in space.masks().items():
        magnitudes = np.abs(space.kernels()[name])
        if not mask.all():
            assert magnitudes[mask].min() >= magnitudes[~mask].max()


def test_the_start_leaves_the_kernels_as_they_are():
    space, budget = space_and_budget("value bits, kmeans")
    before = space.kernels()
    space.start()
    for name, kernel in space.kernels().items():
        np.testing.assert_array_equal(kernel, before[name])


def test_coming_down_to_the_budget_takes_nearly_all_of_it(started_sparse):
    space, budget = started_sparse
    for seed in (1, 2):
        move(space, seed)
        space.project(factor=2.0)
    move(space, 3)
    space.tighten()
    assert 0.95 <= budget.size_of(space.codes()) / budget.total <= 1


def test_a_projection_keeps_the_weights_that_the_budget_pays_for(started_sparse):
    """Each costs what the kept weights of its layer cost before it."""
    space, budget = started_sparse
    move(space)
    before, allowed = space.kernels(), budget.allowed()
    kept, took = counts(space), budget.nominal(space.codes())
    cost = {name: took[name] / count for name, count in kept.items()}
    space.project()
    masks = space.masks()
    spent = sum(mask.sum() * cost[name] for name, mask in masks.items())
    assert allowed - max(cost.values()) <= spent <= allowed
    thresholds = {}
    for name, kernel in space.kernels().items():
        np.testing.assert_array_equal(kernel, before[name] * masks[name])
        efficiency = before[name] ** 2 / cost[name]
        if not masks[name].all() and masks[name].sum() > space.floors()[name]:
            thresholds[name] = efficiency[masks[name]].min()
    # One threshold on w^2 per bit for all layers together.
    for name, mask in masks.items():
        dropped = (before[name] ** 2 / cost[name])[~mask].max(initial=0)
        assert dropped <= min(thresholds.values())


def test_a_projection_is_a_round_of_admm(started):
    space, _ = started
    move(space)
    space.project()
    move(space, 2)
    before = state(space)
    space.project()
    distance = norm = 0.0
    for name, (kernel, anchor, dual) in state(space).items():
        sums = kernel + before[name][2]
        quantized = anchor + dual
        np.testing.assert_allclose(dual, sums - quantized, atol=1e-6)
        levels = distinct(quantized)
        bits = space.bits[name]
        most = 2**bits - 1 if space.codebook == "uniform" else 2**bits + 1
        assert np.count_nonzero(np.abs(levels) > 1e-6) + 1 <= most
        nearest = np.abs(sums[..., None] - levels).min(axis=-1)
        np.testing.assert_allclose(np.abs(sums - quantized), nearest, atol=1e-5)
        distance += np.square(kernel - quantized).sum()
        norm += np.square(kernel).sum()
    assert space.residual == pytest.approx(np.sqrt(distance / norm), rel=1e-4)
    assert space.residual > 0


def test_bits_are_chosen_from_what_the_kept_weights_cost(started):
    space, budget = started
    move(space)
    before, allowed = space.bits, budget.allowed()
    space.project()
    masks, spent = space.masks(), 0.0
    for name, kernel in space.kernels().items():
        values = SortedNonZeros(kernel)
        [(taken, _)] = counts_and_distortions(values, [before[name]], space.codebook)
        spent += budget.rate(taken, masks[name].size, before[name])
    # The scan for steps that compares bits is coarser than that for codebooks.
    assert nominal(space, budget) <= max(allowed, spent) * 1.02
    assert all(width in space.bit_widths for width in space.bits.values())


def test_rounds_of_admm_bring_w_and_v_together(start_once):
    """Kernels that follow their anchors at once, as with an endless rho."""
    space, _ = start_once("value bits, kmeans")
    residuals = []
    for _ in range(8):
        space.project()
        residuals.append(space.residual)
        for layer, anchor in zip(space.layers.values(), space.anchors(), strict=True):
            layer.latent_kernel.assign(anchor)
    assert residuals[-1] < 0.5 * residuals[0]


@pytest.mark.parametrize("name", BUDGETS)
def test_nothing_is_smaller_than_the_empty_space(name):
    space, budget = space_and_budget(name)
    space.empty()
    least = budget.size_of(space.codes())
    assert counts(space) == space.floors()
    assert set(space.bits.values()) == {space.bit_widths[0]}
    for kernel, mask in zip(
        space.kernels().values(), space.masks().values(), strict=True
    ):
        magnitudes = np.abs(kernel)
        if not mask.all():
            assert magnitudes[mask].min() >= magnitudes[~mask].max()
    assert least < 0.8 * budget.total


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_shaving_takes_the_smallest_weights_alone(started_sparse, share):
    space, budget = started_sparse
    masks = {name: codes != 0 for name, (codes, _) in space.codes().items()}
    size, bits = budget.size_of(space.codes()), space.bits
    before = space.codes()
    space.shave(share)
    assert space.bits == bits
    for name, mask in space.masks().items():
        assert not (mask & ~masks[name]).any()
        magnitudes = np.abs(space.kernels()[name])
        np.testing.assert_array_equal(space.codes()[name][0], before[name][0] * mask)
        taken = masks[name] & ~mask
        assert magnitudes[mask].min() >= magnitudes[taken].max(initial=0)
    # An xz file has about 70 bytes that are no data.
    left = budget.size_of(space.codes())
    assert (share - 0.1) * size < left < (share + 0.1) * size + 70


def test_shaving_goes_down_to_the_floors_and_no_weight_returns(start_once):
    """Also where fewer weights than a floor are not zero."""
    space, _ = start_once("value bits, uniform")
    few = np.arange(72).reshape(3, 3, 8, 1) < 4
    space.quantizers["depthwise"].mask.assign(few)
    kept = {name: codes != 0 for name, (codes, _) in space.codes().items()}
    for share in (0.5, 1e-9, 1e-9):
        space.shave(share)
        left = {name: codes != 0 for name, (codes, _) in space.codes().items()}
        assert not any((left[name] & ~kept[name]).any() for name in kept)
    floors = space.floors()
    assert counts(space) == {n: min(floors[n], x.sum()) for n, x in kept.items()}
    assert counts(space)["depthwise"] <= 4


@pytest.mark.parametrize("name", [n for n in SPARSE if n != "xz, kmeans"])
def test_the_smallest_size_is_one_to_start_from(name):
    """Where only the fewest bits pay for the weights that have to stay."""
    space, budget = space_and_budget(name)
    space.empty()
    budget.total = least = budget.size_of(space.codes())
    space.start()
    space.project()
    space.tighten()
    assert counts(space) == space.floors()
    if budget.counted == "value_bits":
        assert budget.size_of(space.codes()) <= least


def test_shaving_takes_bits_where_zeros_save_nothing(start_once):
    space, budget = start_once("bytes")
    size = budget.size_of(space.codes())
    space.shave(0.8)
    assert 0.5 * size < budget.size_of(space.codes()) <= 0.8 * size


@pytest.mark.parametrize("name", ["value bits, uniform", "value bits, kmeans"])
def test_no_layer_is_emptied_whatever_the_others_are_like(name):
    space, budget = space_and_budget(name)
    scale_kernels(space, {"conv": 1e-6, "depthwise": 1e-20, "few": 1e-3})
    space.start()
    space.project()
    space.tighten()
    for layer, floor in space.floors().items():
        assert counts(space)[layer] >= floor
        assert space.codes()[layer][0].any()


@pytest.mark.parametrize("name", ["xz, uniform", "value bits, kmeans", "bytes"])
@pytest.mark.parametrize("value", [0.25, 0.0])
def test_constant_weights(name, value):
    space, budget = space_and_budget(name)
    for layer in space.layers.values():
        layer.latent_kernel.assign(np.full(layer.latent_kernel.shape, value))
    space.start()
    for _ in range(2):
        space.project()
        assert np.isfinite(space.residual)
    space.tighten()
    assert budget.size_of(space.codes()) <= budget.total
    for layer in space.layers.values():
        codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
        expected = value * np.array(layer.kernel_quantizer.mask)
        np.testing.assert_allclose(codes * scale, expected * (codes != 0), rtol=1e-3)
        assert codes.any() == (value != 0)


def test_a_layer_with_fewer_weights_than_codewords_keeps_its_values():
    """But for the rounding to 8-bit integers."""
    space, budget = space_and_budget("value bits, kmeans")
    budget.total = 4000
    space.start()
    space.project()
    quantizer = space.quantizers["few"]
    assert space.bits["few"] >= 3
    kernel = space.kernels()["few"]
    error = np.abs(np.array(quantizer(kernel)) - kernel).max()
    assert error <= float(quantizer.step) * 0.51 < 0.01 * np.abs(kernel).max()


def test_codebooks_follow_the_weights_when_refreshed(started):
    space, _ = started
    before, masks, bits = space.codes(), space.masks(), space.bits
    steps = {n: float(q.step) for n, q in space.quantizers.items()}
    scale_kernels(space, dict.fromkeys(SIZES, 4.0))
    space.refresh()
    assert space.bits == bits
    for name, quantizer in space.quantizers.items():
        np.testing.assert_array_equal(space.masks()[name], masks[name])
        np.testing.assert_array_equal(space.codes()[name][0], before[name][0])
        assert float(quantizer.step) == pytest.approx(4 * steps[name], rel=1e-5)


def test_the_student_computes_with_codebooks_or_in_float(started):
    space, _ = started
    for on in (False, True):
        space.set_quantizing(on)
        for layer in space.layers.values():
            codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
            expected = codes * scale if on else np.array(layer.latent_kernel)
            np.testing.assert_array_equal(layer.kernel, expected)
