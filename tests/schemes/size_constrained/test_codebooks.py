"""Codebooks of a student's kernels."""

import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import SIZES, new_space, scale_kernels
from tfcompress.quantizers.clustering import SortedNonZeros


def test_codebooks_are_those_of_all_layers_with_a_codebook():
    codebooks = new_space("bytes").codebooks
    assert {name: x.size for name, x in codebooks.kernels().items()} == SIZES
    assert codebooks.min_counts() == {**dict.fromkeys(SIZES, 10), "few": 6}


def test_codebooks_are_frozen_once_all_of_them_are():
    codebooks = new_space("bytes").codebooks
    assert not codebooks.is_frozen()
    for name in [*SIZES][:-1]:
        codebooks.quantizers[name].frozen.assign(1.0)
    assert not codebooks.is_frozen()
    codebooks.freeze()
    assert codebooks.is_frozen()


def test_codes_are_the_kept_weights_at_the_nearest_level(started):
    codebooks = started.codebooks
    for name, (codes, bits) in codebooks.codes().items():
        mask, kernel = codebooks.masks()[name], codebooks.kernels()[name]
        levels, step = codebooks.fitted(SortedNonZeros(kernel * mask), bits)
        nearest = np.abs(kernel[..., None] / step - levels).min(axis=-1)
        errors = np.abs(kernel / step - codes)
        # With gaps between levels, weights are rounded to integers first.
        most = nearest + (1e-3 if codebooks.kind == "uniform" else 1.0)
        assert (errors <= most)[mask].all()
        assert np.isin(codes, levels).all() and not codes[~mask].any()


def test_refit_codebooks_follow_the_weights(started):
    codebooks = started.codebooks
    before, masks, bits = codebooks.codes(), codebooks.masks(), codebooks.bits
    steps = {n: float(q.step) for n, q in codebooks.quantizers.items()}
    scale_kernels(codebooks, dict.fromkeys(SIZES, 4.0))
    codebooks.refit()
    assert codebooks.bits == bits
    for name, quantizer in codebooks.quantizers.items():
        np.testing.assert_array_equal(codebooks.masks()[name], masks[name])
        np.testing.assert_array_equal(codebooks.codes()[name][0], before[name][0])
        assert float(quantizer.step) == pytest.approx(4 * steps[name], rel=1e-5)


@pytest.mark.parametrize("on", [False, True])
def test_student_computes_with_codebooks_or_in_float(started, on):
    codebooks = started.codebooks
    codebooks.set_quantizing(on)
    for layer in codebooks.layers.values():
        codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
        expected = codes * scale if on else np.array(layer.latent_kernel)
        np.testing.assert_array_equal(layer.kernel, expected)


def test_codebook_with_a_level_per_weight_keeps_the_weights():
    """But for the rounding of levels to 8-bit integers."""
    codebooks = new_space("value bits, kmeans").codebooks
    kernels, masks = codebooks.kernels(), codebooks.masks()
    codebooks.fit(kernels, masks, dict.fromkeys(SIZES, 3))
    quantizer, kernel = codebooks.quantizers["few"], kernels["few"]
    error = np.abs(np.array(quantizer(kernel)) - kernel).max()
    assert error <= float(quantizer.step) * 0.51 < 0.01 * np.abs(kernel).max()
