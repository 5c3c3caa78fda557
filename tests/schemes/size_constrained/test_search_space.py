"""Start, ADMM and allocation of one search space, one after the other."""

import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import (
    SPARSE,
    counts,
    move,
    network,
    new_space,
    scale_kernels,
    used,
)
from tfcompress.schemes.size_constrained.allocation import set_smallest
from tfcompress.schemes.size_constrained.search_space import SizeSpace


def test_search_space_is_frozen_with_its_codebooks():
    space = SizeSpace(network(), "uniform", (2, 4, 8))
    assert not space.is_frozen()
    space.codebooks.freeze()
    assert space.is_frozen()


def test_descent_after_admm_takes_nearly_all_of_the_budget(started_sparse):
    space = started_sparse
    for seed in (1, 2):
        move(space.codebooks, seed)
        space.admm.project(space.allocation, factor=2.0)
    move(space.codebooks, 3)
    space.allocation.tighten()
    assert 0.95 <= used(space) <= 1


@pytest.mark.parametrize("name", [n for n in SPARSE if n != "xz, kmeans"])
def test_smallest_budget_keeps_the_least_weights_throughout(name):
    """Where only the fewest bits pay for the weights that have to stay."""
    space = new_space(name)
    budget = space.allocation.budget
    set_smallest(space.codebooks)
    budget.total = least = budget.size_of(space.codebooks.codes())
    space.start()
    space.admm.project(space.allocation)
    space.allocation.tighten()
    assert counts(space.codebooks) == space.codebooks.min_counts()
    if budget.unit == "value_bits":
        assert budget.size_of(space.codebooks.codes()) <= least


@pytest.mark.parametrize("name", ["value bits, uniform", "value bits, kmeans"])
def test_layers_of_tiny_weights_are_not_emptied(name):
    space = new_space(name)
    scale_kernels(space.codebooks, {"conv": 1e-6, "depthwise": 1e-20, "few": 1e-3})
    space.start()
    space.admm.project(space.allocation)
    space.allocation.tighten()
    for layer, least in space.codebooks.min_counts().items():
        assert counts(space.codebooks)[layer] >= least
        assert space.codebooks.codes()[layer][0].any()


@pytest.mark.parametrize("name", ["xz, uniform", "value bits, kmeans", "bytes"])
@pytest.mark.parametrize("value", [0.25, 0.0])
def test_constant_weights_keep_their_value(name, value):
    space = new_space(name)
    layers = space.codebooks.layers.values()
    for layer in layers:
        layer.latent_kernel.assign(np.full(layer.latent_kernel.shape, value))
    space.start()
    for _ in range(2):
        space.admm.project(space.allocation)
        assert np.isfinite(space.admm.residual)
    space.allocation.tighten()
    assert used(space) <= 1
    for layer in layers:
        codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
        expected = value * np.array(layer.kernel_quantizer.mask)
        np.testing.assert_allclose(codes * scale, expected * (codes != 0), rtol=1e-3)
        assert codes.any() == (value != 0)
