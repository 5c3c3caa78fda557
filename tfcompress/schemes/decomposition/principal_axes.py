"""Which directions of its outputs a layer uses: factors along their principal axes.

Principal components of outputs, rather than of kernels, are what the rank of a trained
layer is best cut by ("Accelerating Very Deep Convolutional Networks", Zhang et al.,
TPAMI 2016, section 3.1). In units of what follows, so that outputs that a batch
normalization scales down count for less.
"""

import numpy as np

# Directions that no sample shows still count for this, relative to the mean: dropped
# for nothing, they would change what other samples see.
LEAST_VARIANCE = 1e-6
# Of the largest multiplier: the units stay finite where a channel is scaled to zero.
LEAST_MULTIPLIER = 1e-3


def multipliers(coefficients, hidden, norm):
    """What the outputs of a layer are multiplied by before they are used.

    Args:
        coefficients: float array (rank, outputs).
        hidden: covariance of what they multiply, float array (rank, rank).
        norm: `(gamma, epsilon)` of the batch normalization behind, or None.

    Returns:
        Positive float array (outputs,).
    """
    if norm is None:
        return np.ones(coefficients.shape[1])
    gamma, epsilon = norm
    variances = (coefficients * (hidden @ coefficients)).sum(axis=0)
    scales = np.abs(gamma) / np.sqrt(np.maximum(variances, 0.0) + epsilon)
    least = LEAST_MULTIPLIER * scales.max()
    return np.maximum(scales, least) if least > 0 else np.ones_like(scales)


def turned(basis, coefficients, hidden, scales):
    """The same product, with coefficients along the principal axes of the outputs.

    Args:
        basis: float array (rows, rank), orthonormal columns.
        coefficients: float array (rank, outputs), rank <= outputs.
        hidden: covariance of what the basis computes, float array (rank, rank).
        scales: positive float array (outputs,), see `multipliers`.

    Returns:
        `(basis, coefficients)`; the columns of the basis are of unit norm, and the rows
        of the coefficients, times `scales`, at right angles, by falling variance.
    """
    scaled = coefficients * scales
    variances, directions = np.linalg.eigh(hidden)
    variances = np.maximum(variances, max(LEAST_VARIANCE * variances.mean(), 1e-30))
    root = np.sqrt(variances)[:, None] * directions.T
    _, _, axes = np.linalg.svd(root @ scaled, full_matrices=False)
    columns = scaled @ axes.T
    norms = np.linalg.norm(columns, axis=0)
    used = norms > 1e-9 * norms.max()
    unit = columns[:, used] / norms[used]
    # Where the kernel has no such direction, the basis has some other one to offer.
    spare = np.linalg.svd(unit)[0][:, used.sum() :]
    coefficients = np.where(used, norms, 0.0)[:, None] * axes / scales
    return basis @ np.concatenate([unit, spare], axis=1), coefficients
