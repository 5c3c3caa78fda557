"""Rotated factors, against a principal component analysis of the outputs."""

import numpy as np
import pytest

from tfcompress.schemes.decomposition.principal_axes import (
    output_scales,
    rotate_to_principal_axes,
)

ROWS, RANK, OUTPUTS = 18, 6, 8
RNG = np.random.default_rng(0)


def layer(rank=RANK):
    """`(inputs, basis, coefficients)`: correlated inputs and a kernel's SVD."""
    inputs = RNG.normal(size=(500, ROWS)) @ RNG.normal(size=(ROWS, ROWS))
    kernel = RNG.normal(size=(ROWS, rank)) @ RNG.normal(size=(rank, OUTPUTS))
    basis, values, axes = np.linalg.svd(kernel, full_matrices=False)
    return inputs, basis[:, :RANK], (values[:, None] * axes)[:RANK]


def rotated_layer(rank=RANK, scales=None):
    inputs, basis, coefficients = layer(rank)
    scales = RNG.uniform(0.1, 3.0, OUTPUTS) if scales is None else scales
    hidden = np.cov(inputs @ basis, rowvar=False, bias=True)
    new = rotate_to_principal_axes(basis, coefficients, hidden, scales)
    return inputs, basis @ coefficients, new, scales


@pytest.mark.parametrize("rank", [RANK, 3])
def test_rotation_keeps_the_product(rank):
    _, kernel, (basis, coefficients), _ = rotated_layer(rank)
    np.testing.assert_allclose(basis @ coefficients, kernel, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), 1.0)
    assert (np.linalg.norm(coefficients, axis=1) > 0).sum() == rank


def test_leading_ranks_explain_the_most_variance_of_scaled_outputs():
    """The error of the first k ranks is that of the first k principal components."""
    inputs, kernel, (basis, coefficients), scales = rotated_layer()
    outputs = (inputs - inputs.mean(0)) @ kernel * scales
    values = np.linalg.svd(outputs, compute_uv=False)
    for k in range(1, RANK):
        kept = basis[:, :k] @ coefficients[:k]
        error = np.linalg.norm(outputs - (inputs - inputs.mean(0)) @ kept * scales)
        assert error == pytest.approx(np.sqrt(np.square(values[k:]).sum()), rel=1e-3)


def test_rotation_keeps_directions_that_no_sample_shows():
    """Inputs in a part of the space only: the product is the same outside of it."""
    inputs, basis, coefficients = layer()
    inputs[:, 4:] = 0.0
    hidden = np.cov(inputs @ basis, rowvar=False, bias=True)
    new = rotate_to_principal_axes(basis, coefficients, hidden, np.ones(OUTPUTS))
    np.testing.assert_allclose(new[0] @ new[1], basis @ coefficients, atol=1e-6)


@pytest.mark.parametrize("noise", [-1e-3, 0.0])
def test_rotation_keeps_the_product_for_a_singular_covariance(noise):
    """Measured in float32, a direction of no variance comes out below zero."""
    _, basis, coefficients = layer()
    hidden = np.diag([1.0, 1.0, 1.0, 1.0, 0.0, noise])
    new = rotate_to_principal_axes(basis, coefficients, hidden, np.ones(OUTPUTS))
    np.testing.assert_allclose(new[0] @ new[1], basis @ coefficients, atol=1e-6)
    still = rotate_to_principal_axes(
        basis, coefficients, np.zeros_like(hidden), np.ones(OUTPUTS)
    )
    np.testing.assert_allclose(still[0] @ still[1], basis @ coefficients, atol=1e-6)


def test_rotation_of_a_kernel_of_zeros_has_a_basis_that_learns():
    basis = np.linalg.qr(RNG.normal(size=(ROWS, RANK)))[0]
    new = rotate_to_principal_axes(
        basis, np.zeros((RANK, OUTPUTS)), np.eye(RANK), np.ones(OUTPUTS)
    )
    assert not new[1].any()
    np.testing.assert_allclose(np.linalg.norm(new[0], axis=0), 1.0)


def test_output_scales_are_those_of_the_batch_normalization():
    inputs, basis, coefficients = layer()
    hidden = np.cov(inputs @ basis, rowvar=False, bias=True)
    outputs = inputs @ basis @ coefficients
    gamma = RNG.normal(size=OUTPUTS)
    expected = np.abs(gamma) / np.sqrt(outputs.var(axis=0) + 1e-3)
    np.testing.assert_allclose(
        output_scales(coefficients, hidden, (gamma, 1e-3)), expected
    )
    assert (output_scales(coefficients, hidden, None) == 1).all()
    assert (output_scales(coefficients, hidden, (0 * gamma, 1e-3)) == 1).all()
    gamma[0] = 0.0
    assert output_scales(coefficients, hidden, (gamma, 1e-3))[0] > 0
