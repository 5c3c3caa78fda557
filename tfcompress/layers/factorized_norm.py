"""Factorized kernels with batch normalization between basis and coefficients."""

import keras
import numpy as np
from keras import ops

from tfcompress.layers.factorized import FactorizedKernel
from tfcompress.layers.kernel import value_of


class FactorizedNorm(FactorizedKernel):
    """`FactorizedKernel` with batch normalization behind the basis.

    It computes C^T norm(B x) + bias, where `norm` has no gamma and no beta: the
    coefficients and the bias take their part. The norm of a row or column of C is then
    what it adds, in standard deviations, whatever the scale of the basis: a layer
    without normalization behind it, whose rows and columns a group lasso can compare
    (EDP, with batch normalization between the two layers).

    Args:
        momentum, epsilon: of the `keras.layers.BatchNormalization`. The others are
            those of `FactorizedKernel`.

    Variables: those of `FactorizedKernel`, and the layer `normalization`'s.
    """

    def __init__(self, *args, momentum=0.99, epsilon=1e-3, **kwargs):
        super().__init__(*args, **kwargs)
        self.normalization = keras.layers.BatchNormalization(
            axis=self.channel_axis,
            momentum=momentum,
            epsilon=epsilon,
            center=False,
            scale=False,
            dtype=self.dtype_policy,
            name="normalization",
        )

    def build(self, input_shape):
        super().build(input_shape)
        shape = list(self.compute_output_shape(input_shape))
        shape[self.channel_axis] = self.kernel_variable.shape[-1]
        self.normalization.build(shape)

    def call(self, inputs, training=None):
        if self.observer is not None:
            self.observer(inputs)
        hidden = ops.moveaxis(self.hidden(inputs, training), self.channel_axis, -1)
        coefficients = ops.cast(self.masked_factors()[1], self.compute_dtype)
        outputs = ops.matmul(hidden, coefficients)
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, self.compute_dtype)
        outputs = ops.moveaxis(outputs, -1, self.channel_axis)
        return self.activation(outputs) if self.activation is not None else outputs

    def hidden(self, inputs, training=None):
        """What the basis and the normalization compute."""
        return self.normalization(super().hidden(inputs), training=training)

    def compute_kernel(self):
        """The kernel that computes the same in inference, but for the bias."""
        basis, coefficients = self.masked_factors()
        multiplier = self._normalized_by()[0]
        kernel = ops.tensordot(basis * multiplier, coefficients, axes=1)
        return ops.cast(kernel, self.compute_dtype)

    def factors(self):
        basis, coefficients, bias = super().factors()
        kept = np.flatnonzero(ops.convert_to_numpy(self.rank_mask))
        multiplier, offset = (
            ops.convert_to_numpy(x)[kept] for x in self._normalized_by()
        )
        return basis * multiplier, coefficients, bias + offset @ coefficients

    def take_up(self, norm, bias):
        """Starts as a layer and the batch normalization behind it together.

        To be called after `set_kernel` with an "identity" start.

        Args:
            norm: the built `keras.layers.BatchNormalization`.
            bias: of the layer, float array (output channels,), or None.
        """
        mean = ops.convert_to_numpy(norm.moving_mean)
        mean = mean if bias is None else mean - ops.convert_to_numpy(bias)
        self.normalization.moving_mean.assign(mean)
        self.normalization.moving_variance.assign(value_of(norm.moving_variance))
        if norm.gamma is not None:
            self.coefficients.assign(np.diag(ops.convert_to_numpy(norm.gamma)))
        if norm.beta is not None:
            self.bias.assign(value_of(norm.beta))

    def _normalized_by(self):
        """What the normalization multiplies by and adds in inference: tensors."""
        norm = self.normalization
        multiplier = ops.rsqrt(norm.moving_variance + norm.epsilon)
        return multiplier, -norm.moving_mean * multiplier

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.normalization.momentum,
            "epsilon": self.normalization.epsilon,
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedNormConv1D(FactorizedNorm, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with batch normalization within its factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedNormConv2D(FactorizedNorm, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with batch normalization within its factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedNormDense(FactorizedNorm, keras.layers.Dense):
    """`keras.layers.Dense` with batch normalization within its factorized kernel."""
