"""Rotation of factors to the principal axes of a layer's outputs.

The rank of a trained layer is best reduced by the principal components of its outputs,
not of its kernel ("Accelerating Very Deep Convolutional Networks", Zhang et al., TPAMI
2016, section 3.1). Outputs count in the units of the batch normalization after the
layer, so that a channel that it scales down counts for less.
"""

import numpy as np

# Share of the mean variance that every direction counts for at least. A direction that
# no sample shows may matter to other samples, and must not be dropped for nothing.
LEAST_VARIANCE = 1e-6
# Share of the largest scale: a channel that is scaled to zero keeps a finite unit.
LEAST_SCALE = 1e-3


def output_scales(
    coefficients: np.ndarray,
    hidden_covariance: np.ndarray,
    norm: tuple[np.ndarray | float, float] | None,
) -> np.ndarray:
    """Returns the factors by which batch normalization scales a layer's outputs.

    Args:
        coefficients: float array (rank, outputs).
        hidden_covariance: float array (rank, rank). Covariance of the basis's outputs.
        norm: `(gamma, epsilon)` of the batch normalization after the layer, or None.

    Returns:
        Positive float array (outputs,).
    """
    if norm is None:
        return np.ones(coefficients.shape[1])
    gamma, epsilon = norm
    variances = (coefficients * (hidden_covariance @ coefficients)).sum(axis=0)
    scales = np.abs(gamma) / np.sqrt(np.maximum(variances, 0.0) + epsilon)
    least = LEAST_SCALE * scales.max()
    return np.maximum(scales, least) if least > 0 else np.ones_like(scales)


def rotate_to_principal_axes(
    basis: np.ndarray,
    coefficients: np.ndarray,
    hidden_covariance: np.ndarray,
    scales: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns factors of the same product along the outputs' principal axes.

    Args:
        basis: float array (rows, rank), rank <= rows.
        coefficients: float array (rank, outputs), rank <= outputs.
        hidden_covariance: float array (rank, rank). Covariance of the basis's outputs.
        scales: positive float array (outputs,), see `output_scales`.

    Returns:
        `(basis, coefficients)`. The columns of the basis have unit norm. The rows of
        the coefficients times `scales` are orthogonal, by descending variance.
    """
    scaled = coefficients * scales
    variances, directions = np.linalg.eigh(hidden_covariance)
    variances = np.maximum(variances, max(LEAST_VARIANCE * variances.mean(), 1e-30))
    axes = _right_vectors(np.sqrt(variances)[:, None] * (directions.T @ scaled))
    columns = basis @ (scaled @ axes.T)
    norms = np.linalg.norm(columns, axis=0)
    used = norms > 1e-9 * norms.max()
    unit = columns[:, used] / norms[used]
    coefficients = np.where(used, norms, 0.0)[:, None] * axes / scales
    # A kernel of lower rank leaves columns of the basis free: any orthogonal ones.
    result = np.empty_like(columns)
    result[:, used] = unit
    result[:, ~used] = _orthogonal_to(unit, np.count_nonzero(~used))
    return result, coefficients


def _right_vectors(matrix):
    """Right singular vectors as rows, by descending singular value; rows <= columns.

    An eigendecomposition of the smaller product is several times as fast as a singular
    value decomposition. Vectors of tiny values are less exact, but orthonormal.
    """
    rows, columns = matrix.shape
    if rows == columns:
        return np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1].T
    squares, left = np.linalg.eigh(matrix @ matrix.T)
    vectors = left[:, ::-1].T @ matrix
    if squares[0] > 1e-10 * squares[-1]:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.linalg.qr(vectors.T)[0].T


def _orthogonal_to(columns, count):
    """Orthonormal vectors orthogonal to columns, float array (rows, count)."""
    rows = len(columns)
    if not count:
        return np.zeros((rows, 0))
    span = np.linalg.qr(columns)[0]
    free = np.random.default_rng(0).normal(size=(rows, count))
    for _ in range(2):  # the second time removes what rounding has left
        free -= span @ (span.T @ free)
    return np.linalg.qr(free)[0]
