"""Layers whose kernel is the product of a basis and coefficients."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.layers.factorized_forms import Int8Factors, inference_forms
from tfcompress.layers.kernel import ComputedKernel, channel_axis
from tfcompress.quantizers import functional as F
from tfcompress.types import Tensor

STARTS = ("svd", "identity")
# Share of the mean squared norm of the coefficients' rows that is added to each, so
# that small rows do not speed up the basis without bound.
LEAST_NORM = 0.01
# Batch size in a count of multiplications, where a compiled step does not know it.
USUAL_BATCH = 32


class FactorizedKernel(Int8Factors, ComputedKernel):
    """Mixin that makes the kernel of a Keras layer a basis times coefficients.

    The mixin comes before the Keras layer among the bases. The kernel is W = B C. In
    EDP's block B, the basis, is a convolution with `kernel_rank` filters. C, the
    coefficients, is a 1 x 1 convolution that mixes them into outputs. A row of zeros in
    C removes a filter of the basis, so the rank falls. A column of zeros removes an
    output channel. In training the layer multiplies both factors and runs one
    convolution, or applies both to the inputs where that takes fewer multiplications.
    `tfcompress.finalize` replaces it by one or two plain layers.

    The gradient of the basis is divided by the squared norms of the coefficients' rows
    at the start (ScaledGD, Tong et al. 2021). The product then learns as fast as a
    plain kernel; otherwise its speed would grow with the squared singular values.

    With `int8=True` the layer computes as its int8 operators do, once the masks are
    final, see `Int8Factors`.

    Args:
        kernel_rank: int or None. Filters of the basis; None is full rank, the smaller
            side of the kernel as a matrix.
        int8: bool. Whether the inference form has packed kernels of 8 bits.

    Variables, all float32, in the order of the file:
        _kernel: (..., input channels, rank). Basis, with the layer's initializer,
            regularizer and constraint.
        coefficients: (rank, output channels).
        gradient_scale: (rank,), not trainable. Factors of the basis's gradient.
        rank_mask: (rank,), not trainable. Keep mask of the ranks, of 0 and 1.
        input_mask: (input channels,), not trainable. Keep mask of the input channels.
        frozen: scalar, not trainable. 1 once the masks are final, else 0.
        hidden_quantizer: those of a `BitSharingActivation`, with `int8=True` only.

    Attributes:
        observer: function or None. Receives the inputs of every call.
        channel_axis: int. Axis of the channels in inputs and outputs.
        norms_hidden: bool. Whether the outputs of the basis are normalized.

    Raises:
        ValueError: if `kernel_rank` is no positive integer, or the layer has several
            groups or a `lora_rank`.
    """

    norms_hidden = False
    may_become_constant = True

    def __init__(
        self,
        *args: Any,
        kernel_rank: int | None = None,
        int8: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if kernel_rank is not None and (
            not isinstance(kernel_rank, int) or kernel_rank < 1
        ):
            raise ValueError(
                "`kernel_rank` is a positive integer. Received: "
                f"kernel_rank={kernel_rank!r}."
            )
        if getattr(self, "groups", 1) != 1 or getattr(self, "lora_rank", None):
            raise ValueError(
                f"{type(self).__name__} has one group and no `lora_rank`. Received: "
                f"groups={getattr(self, 'groups', 1)}, "
                f"lora_rank={getattr(self, 'lora_rank', None)}."
            )
        self.kernel_rank = kernel_rank
        self.int8 = bool(int8)
        self.observer: Callable[[Tensor], None] | None = None

    def add_weight(
        self,
        *args: Any,
        name: str | None = None,
        shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Any:
        if name == self.forms.kernel:
            *others, outputs = shape
            self.full_rank = min(math.prod(others), outputs)
            shape = (*others, self.kernel_rank or self.full_rank)
            kwargs["autocast"] = False  # cast after the masks, or as a product
        return super().add_weight(*args, name=name, shape=shape, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        *_, inputs, rank = self.kernel_variable.shape
        outputs = self.filters if hasattr(self, "filters") else self.units
        self.coefficients = self.add_weight(
            name="coefficients",
            shape=(rank, outputs),
            initializer=keras.initializers.Orthogonal(),
            autocast=False,
        )
        state: dict[str, Any] = {
            "initializer": "ones",
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        # The names of the variables are those of earlier files.
        self.gradient_scale = self.add_weight(name="pace", shape=(rank,), **state)
        self.rank_mask = self.add_weight(name="rank_mask", shape=(rank,), **state)
        self.input_mask = self.add_weight(name="input_mask", shape=(inputs,), **state)
        self.frozen = self.add_weight(name="cut", **{**state, "initializer": "zeros"})
        if self.int8:
            self.build_quantizers(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(inputs)
        if self.int8:
            outputs = ops.cond(
                self.has_two_products(),
                lambda: self._two_int8_products(inputs),
                lambda: self.product_with(inputs, self.kernel),
            )
        elif self._is_cheaper_apart(inputs):
            basis, coefficients = self._factors_in_training()
            outputs = self.mix(self.product_with(inputs, basis), coefficients)
        else:
            return super().call(inputs)
        return self.finish(outputs)

    def _is_cheaper_apart(self, inputs):
        """Whether B and C, one after the other, take fewer multiplications than B C."""
        batch, *shape = self.compute_output_shape(inputs.shape)
        positions = [batch or USUAL_BATCH, *shape]
        del positions[self.channel_axis]
        if None in positions:
            return False
        count = math.prod(positions)
        rank, outputs = self.coefficients.shape
        weights = math.prod(self.kernel_variable.shape[:-1])
        apart = count * rank * (weights + outputs)
        return apart < (rank + count) * weights * outputs

    def _two_int8_products(self, inputs):
        basis, coefficients = self._factors_in_training()
        hidden = self.product_with(inputs, self.kernel_quantizer(basis))
        return self.mix(
            self.on_hidden_levels(hidden), self.kernel_quantizer(coefficients)
        )

    def mix(self, hidden: Tensor, coefficients: Tensor) -> Tensor:
        """Returns the product of outputs of the basis with coefficients.

        Args:
            hidden: float tensor with `kernel_rank` channels.
            coefficients: float tensor (rank, output channels).
        """
        hidden = ops.moveaxis(hidden, self.channel_axis, -1)
        outputs = ops.matmul(hidden, ops.cast(coefficients, self.compute_dtype))
        return ops.moveaxis(outputs, -1, self.channel_axis)

    def finish(self, outputs: Tensor) -> Tensor:
        """Returns a product with the bias of the layer and after its activation."""
        if self.use_bias:
            shape = [1] * len(outputs.shape)
            shape[self.channel_axis] = -1
            bias = ops.cast(self.bias, self.compute_dtype)
            outputs = outputs + ops.reshape(bias, shape)
        return self.activation(outputs) if self.activation is not None else outputs

    def hidden(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Returns the outputs of the basis, a tensor with `kernel_rank` channels."""
        return self.product_with(inputs, self.masked_factors()[0])

    def product_with(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns the outputs of the plain layer before bias and activation.

        Args:
            inputs: float tensor.
            kernel: float tensor of the kernel's shape, of any number of outputs.
        """
        kernel = ops.cast(kernel, self.compute_dtype)
        if isinstance(self, keras.layers.Dense):
            return ops.matmul(inputs, kernel)
        padding = self.padding
        if padding == "causal":
            inputs = ops.pad(inputs, keras_private.causal_padding(self))
            padding = "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in inputs and outputs."""
        return channel_axis(self)

    def compute_kernel(self) -> Tensor:
        """Returns B C of the masked factors in the layer's compute dtype.

        With `int8=True` it is rounded, once the masks are final.
        """
        return ops.cast(self.rounded(self.product()), self.compute_dtype)

    def product(self) -> Tensor:
        """Returns the kernel of the layer in float32, not rounded."""
        *others, rank = self.kernel_variable.shape
        basis, coefficients = self._factors_in_training()
        product = ops.matmul(ops.reshape(basis, (-1, rank)), coefficients)
        return ops.reshape(product, (*others, -1))

    def _factors_in_training(self):
        """The masked factors with the gradients of ScaledGD."""
        basis, coefficients = self.masked_factors()
        # Each factor moves the product, hence the halves.
        scale = 0.5 * ops.convert_to_tensor(self.gradient_scale)
        basis = F.scale_gradient(basis, scale)
        return basis, F.scale_gradient(coefficients, ops.full((), 0.5))

    def masked_factors(self) -> tuple[Tensor, Tensor]:
        """Returns B and C times their keep masks, float32 tensors."""
        inputs, ranks = map(ops.convert_to_tensor, (self.input_mask, self.rank_mask))
        basis = ops.convert_to_tensor(self.kernel_variable)
        basis = basis * ops.expand_dims(inputs, -1)
        return basis, self.coefficients * ops.expand_dims(ranks, -1)

    def set_kernel(self, kernel: np.ndarray, start: str = "svd") -> None:
        """Sets both factors so that their product is a kernel.

        Args:
            kernel: float array (..., input channels, output channels).
            start: str. "svd": B = U and C = S V^T of the singular value decomposition,
                so that the norms of C's rows are the singular values. "identity":
                B = W and C = I; the rank is then the number of output channels.

        Raises:
            ValueError: if the layer's rank is not the one that the start needs.
        """
        matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        rank, outputs = self.coefficients.shape
        needed = outputs if start == "identity" else self.full_rank
        if rank != needed:
            raise ValueError(
                f"Layer '{self.name}' is expected to have rank {needed} for an exact "
                f"'{start}' start. Received: kernel_rank={rank}."
            )
        if start == "identity":
            basis, coefficients = matrix, np.eye(outputs)
        else:
            basis, values, vectors = np.linalg.svd(matrix, full_matrices=False)
            coefficients = values[:, None] * vectors
        self.set_factors(basis, coefficients)

    def set_product(self, kernel: np.ndarray) -> None:
        """Sets factors of full rank: a kernel, and an identity on its smaller side.

        It costs no singular value decomposition, for factors that are soon replaced.

        Args:
            kernel: float array (..., input channels, output channels).
        """
        matrix = np.asarray(kernel, np.float32).reshape(-1, kernel.shape[-1])
        identity: np.ndarray = np.eye(self.full_rank, dtype=np.float32)
        is_tall = len(matrix) >= matrix.shape[1]
        self.set_factors(*((matrix, identity) if is_tall else (identity, matrix)))

    def is_product(self) -> bool:
        """Whether the factors are those of `set_product`."""
        factors = self.coefficients, self.kernel_variable
        for factor in map(ops.convert_to_numpy, factors):
            matrix = factor.reshape(-1, factor.shape[-1])
            if len(matrix) == matrix.shape[1] and np.array_equal(
                matrix, np.eye(len(matrix))
            ):
                return True
        return False

    def set_factors(self, basis: np.ndarray, coefficients: np.ndarray) -> None:
        """Sets both factors and the gradient scale that belongs to them.

        Args:
            basis: float array of the basis's shape, or (weights of a filter, rank).
            coefficients: float array (rank, output channels).
        """
        self.kernel_variable.assign(basis.reshape(self.kernel_variable.shape))
        self.coefficients.assign(coefficients)
        norms = np.square(coefficients).sum(axis=1)
        norms = norms + LEAST_NORM * norms.mean()
        norms = np.where(norms > 0, norms, 1.0)  # a kernel of zeros
        self.gradient_scale.assign(1.0 / norms)

    def unfinished(self) -> list[str]:
        shrinks = self.coefficients.constraint is not None
        if shrinks and not float(ops.convert_to_numpy(self.frozen)):
            return ["channels and ranks are not cut yet. Train with `fit` to its end."]
        return []

    def inference_layers(
        self, norm: keras.layers.BatchNormalization | None, names: set[str]
    ) -> list[keras.layers.Layer]:
        rank = self.factors()[0].shape[-1] if self.is_decomposed() else None
        return inference_forms(self, rank, has_bias=norm is not None)

    def copy_to_inference(
        self,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        if self.int8:
            self.copy_codes(layers, norm)
            return
        basis, coefficients, bias = self.factors()
        last = layers[-1]
        if len(layers) == 2:
            layers[0].kernel.assign(basis)
            last.kernel.assign(coefficients.reshape(last.kernel.shape))
        else:
            last.kernel.assign(ops.matmul(basis, coefficients))
        if bias is not None:
            last.bias.assign(bias)

    def channel_mask(
        self, channels: Any, name: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        if name not in channels.read:
            return None
        return channels.read[name], ops.convert_to_numpy(self.input_mask) > 0

    def inference_bias(self) -> np.ndarray | None:
        return self.factors()[2]

    def is_decomposed(self) -> bool:
        """Returns whether ranks were cut, so that the inference form is two layers."""
        return not ops.convert_to_numpy(self.rank_mask).all()

    def kept_ranks(self) -> np.ndarray:
        """Returns the indices of the ranks that are kept, an int array."""
        return np.flatnonzero(ops.convert_to_numpy(self.rank_mask))

    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns the factors of the ranks that are kept, and the bias.

        Returns:
            `(basis, coefficients, bias)`, arrays of shapes (..., input channels, kept),
            (kept, output channels) and (output channels,). The basis is zero for masked
            input channels. The bias is None if the layer has none.
        """
        ranks = self.kept_ranks()
        basis = ops.convert_to_numpy(self.kernel_variable)[..., ranks]
        inputs = ops.convert_to_numpy(self.input_mask)[:, None]
        coefficients = ops.convert_to_numpy(self.coefficients)[ranks]
        bias = ops.convert_to_numpy(self.bias) if self.use_bias else None
        return basis * inputs, coefficients, bias

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "kernel_rank": self.kernel_rank}
        return {**config, "int8": True} if self.int8 else config


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedConv1D(FactorizedKernel, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedConv2D(FactorizedKernel, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedDense(FactorizedKernel, keras.layers.Dense):
    """`keras.layers.Dense` with a factorized kernel."""
