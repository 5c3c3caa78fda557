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
        basis: float array (rows, rank) with orthonormal columns.
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
    root = np.sqrt(variances)[:, None] * directions.T
    _, _, axes = np.linalg.svd(root @ scaled, full_matrices=False)
    columns = scaled @ axes.T
    norms = np.linalg.norm(columns, axis=0)
    used = norms > 1e-9 * norms.max()
    unit = columns[:, used] / norms[used]
    # A kernel of lower rank leaves columns of the basis free: any orthogonal ones.
    spare = np.linalg.svd(unit)[0][:, used.sum() :]
    coefficients = np.where(used, norms, 0.0)[:, None] * axes / scales
    return basis @ np.concatenate([unit, spare], axis=1), coefficients
