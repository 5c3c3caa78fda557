"""Factorized kernels with batch normalization between basis and coefficients."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.layers.factorized import FactorizedKernel
from tfcompress.layers.kernel import value_of
from tfcompress.types import ArrayLike, Tensor


class FactorizedNorm(FactorizedKernel):
    """`FactorizedKernel` with batch normalization after the basis (EDP).

    It computes C^T norm(B x) + bias. `norm` has no gamma and no beta, since the
    coefficients and the bias can take their place. The norm of a row or column of C is
    then its contribution in standard deviations, whatever the scale of the basis, so
    that a group lasso can compare them.

    Args:
        momentum: float. Momentum of the `keras.layers.BatchNormalization`.
        epsilon: float. Epsilon of the same.
        kwargs: arguments of `FactorizedKernel`.

    Attributes:
        normalization: `keras.layers.BatchNormalization`. Its variables follow those of
            `FactorizedKernel`.
    """

    norms_hidden = True

    def __init__(
        self, *args: Any, momentum: float = 0.99, epsilon: float = 1e-3, **kwargs: Any
    ) -> None:
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

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        shape = list(self.compute_output_shape(input_shape))
        shape[self.channel_axis] = self.kernel_variable.shape[-1]
        self.normalization.build(shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.observer is not None:
            self.observer(inputs)
        basis, coefficients = self.masked_factors()
        if not self.int8:
            hidden = self._normalized(inputs, basis, training)
            return self.finish(self.mix(hidden, coefficients))
        rounds = self.has_two_products()
        basis, coefficients = (
            ops.where(rounds, self.kernel_quantizer(factor), factor)
            for factor in (basis, coefficients)
        )
        hidden = self._normalized(inputs, basis, training)
        hidden = ops.cond(rounds, lambda: self.on_hidden_levels(hidden), lambda: hidden)
        outputs = self.mix(hidden, coefficients)
        outputs = outputs + ops.cond(
            self.has_one_product(),
            lambda: self.product_with(inputs, self._rounding_error()),
            lambda: ops.zeros_like(outputs),
        )
        return self.finish(outputs)

    def _rounding_error(self):
        """Difference that rounding makes to the kernel of inference, a constant.

        The kernel of a batch in training depends on its statistics, which are known
        only after the outputs of the basis.
        """
        kernel = self.product()
        return ops.stop_gradient(self.kernel_quantizer(kernel) - kernel)

    def _normalized(self, inputs, basis, training):
        # Of the steps of a sequence, as in a BatchNormalization after the layer.
        mask = keras_private.mask_of(inputs) if self.supports_masking else None
        hidden = self.product_with(inputs, basis)
        return self.normalization(hidden, training=training, mask=mask)

    def hidden(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the outputs of the basis, normalized as a call with `training` is."""
        return self._normalized(inputs, self.masked_factors()[0], training)

    def product(self) -> Tensor:
        """Returns the kernel of the same layer in inference, float32, not rounded."""
        basis, coefficients = self.masked_factors()
        return ops.tensordot(basis * self._affine()[0], coefficients, axes=1)

    def copy_basis(
        self, packed: keras.layers.Layer, codes: np.ndarray, scale: np.ndarray
    ) -> None:
        multiplier, offset = self._kept_affine()
        packed.set_kernel(codes, scale * multiplier)
        packed.bias.assign(offset)

    def inference_bias(self) -> np.ndarray | None:
        # Of two operators the first has the offset of the normalization.
        if self.int8 and self.is_decomposed():
            return ops.convert_to_numpy(self.bias)
        return super().inference_bias()

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        basis, coefficients, bias = super().factors()
        multiplier, offset = self._kept_affine()
        return basis * multiplier, coefficients, bias + offset @ coefficients

    def absorb(
        self, norm: keras.layers.BatchNormalization, bias: ArrayLike | None
    ) -> None:
        """Sets the weights to those of a layer and the BatchNormalization after it.

        `set_kernel` with an "identity" start comes before.

        Args:
            norm: built `keras.layers.BatchNormalization`.
            bias: float array (output channels,). Bias of the layer, or None.
        """
        mean = ops.convert_to_numpy(norm.moving_mean)
        mean = mean if bias is None else mean - ops.convert_to_numpy(bias)
        self.normalization.moving_mean.assign(mean)
        self.normalization.moving_variance.assign(value_of(norm.moving_variance))
        if norm.gamma is not None:
            self.coefficients.assign(np.diag(ops.convert_to_numpy(norm.gamma)))
        if norm.beta is not None:
            self.bias.assign(value_of(norm.beta))

    def _kept_affine(self):
        kept = self.kept_ranks()
        return [ops.convert_to_numpy(x)[kept] for x in self._affine()]

    def _affine(self):
        """Multiplier and offset of the normalization in inference, tensors (rank,)."""
        norm = self.normalization
        multiplier = ops.rsqrt(norm.moving_variance + norm.epsilon)
        return multiplier, -norm.moving_mean * multiplier

    def get_config(self) -> dict[str, Any]:
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
