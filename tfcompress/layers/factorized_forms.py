"""Inference forms of factorized layers, and training in the arithmetic of int8."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from tfcompress.layers.batch_norm import fold
from tfcompress.layers.cloning import config_of
from tfcompress.layers.tensors.activation import QuantizeActivation
from tfcompress.layers.training_form import TrainingForm
from tfcompress.quantizers import BitSharingActivation, Uniform
from tfcompress.types import Tensor

if TYPE_CHECKING:
    from tfcompress.layers.factorized import FactorizedKernel

BITS = 8


class Int8Factors(TrainingForm):
    """Mixin of factorized layers that compute as their int8 operators do.

    With `int8=True`, and once the masks are final, the kernels of the inference form
    are rounded to 8 bits per output channel, with straight-through gradients: one
    kernel, or basis and coefficients if the rank was cut. Between these the tensor is
    rounded to levels with a learned range.

    Attributes:
        int8: bool. Whether the layer does so.
        kernel_quantizer: `Uniform` quantizer of all kernels, with `int8=True` only.
        hidden_quantizer: `BitSharingActivation` of the outputs of the basis, with
            `int8=True` only.
    """

    int8 = False
    frozen: Any
    rank_mask: Any
    compute_dtype: str

    @property
    def folds_batch_norm(self) -> bool:  # type: ignore[override]
        return self.int8

    def on_learned_levels(self) -> None:
        self.int8 = True

    def build_quantizers(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the quantizers of a layer with `int8=True`."""
        self.kernel_quantizer = Uniform(BITS)
        self.hidden_quantizer = BitSharingActivation((BITS,), signed=True)
        self.hidden_quantizer.build(input_shape)

    def has_two_products(self) -> Tensor:
        """Returns whether basis and coefficients are rounded, a bool scalar."""
        is_cut = ops.min(ops.convert_to_tensor(self.rank_mask)) < 0.5
        return ops.logical_and(self._is_frozen(), is_cut)

    def has_one_product(self) -> Tensor:
        """Returns whether the product of the factors is rounded, a bool scalar."""
        is_whole = ops.min(ops.convert_to_tensor(self.rank_mask)) > 0.5
        return ops.logical_and(self._is_frozen(), is_whole)

    def _is_frozen(self):
        return ops.convert_to_tensor(self.frozen) > 0

    def rounded(self, kernel: Tensor) -> Tensor:
        """Returns the product of the factors, float32, rounded where it is one."""
        if not self.int8:
            return kernel
        return ops.where(self.has_one_product(), self.kernel_quantizer(kernel), kernel)

    def on_hidden_levels(self, hidden: Tensor) -> Tensor:
        """Returns the outputs of the basis on levels, in the layer's compute dtype."""
        return ops.cast(self.hidden_quantizer(hidden), self.compute_dtype)

    def encoded_kernels(self: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the kernels that int8 operators read, in their order.

        Returns:
            List of `(codes, scale)`, see `quantizers.Quantizer.encode`: of the product,
            or of basis and coefficients with the ranks that are kept.
        """
        if not self.is_decomposed():
            return [self.kernel_quantizer.encode(self.product())]
        ranks = self.kept_ranks()
        basis, coefficients = map(ops.convert_to_numpy, self.masked_factors())
        kept = basis[..., ranks], coefficients[ranks]
        return [self.kernel_quantizer.encode(factor) for factor in kept]

    def biased_product(
        self: Any, step: float | None
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        if not self.int8 or not float(ops.convert_to_numpy(self.frozen)):
            return None
        kernels = self.encoded_kernels()
        if len(kernels) > 1:
            step = self.hidden_quantizer.scale_value()
        return None if step is None else (*kernels[-1], step)

    def copy_codes(
        self: Any,
        layers: list[keras.layers.Layer],
        norm: keras.layers.BatchNormalization | None,
    ) -> None:
        """Does `copy_to_inference` of a layer with `int8=True`."""
        kernels = self.encoded_kernels()
        if len(layers) > 1:
            basis, levels, _ = layers
            self.copy_basis(basis, *kernels[0])
            levels.set_scale(self.hidden_quantizer.scale_value())
        last, (codes, scale), bias = layers[-1], kernels[-1], self.inference_bias()
        if norm is not None:
            bias = np.zeros(()) if bias is None else bias
            codes, scale, bias = fold(codes, scale, bias, norm)
        shapes = last.kernel_shape, last.kernel_scale.shape
        last.set_kernel(codes.reshape(shapes[0]), scale.reshape(shapes[1]))
        if bias is not None:
            last.bias.assign(bias)

    def copy_basis(
        self, packed: keras.layers.Layer, codes: np.ndarray, scale: np.ndarray
    ) -> None:
        """Sets the weights of the packed layer of the basis."""
        packed.set_kernel(codes, scale)


def inference_forms(
    layer: "FactorizedKernel", rank: int | None, has_bias: bool
) -> list[keras.layers.Layer]:
    """Returns the layers that take the place of a factorized one in inference.

    Args:
        layer: a `FactorizedKernel`. With `int8=True` its forms have packed kernels, and
            there is a `QuantizeActivation` between two of them.
        rank: int or None. Filters of the basis; None for one layer.
        has_bias: bool. Whether a batch normalization is folded into the last layer.
    """
    changes = {"use_bias": True} if has_bias else {}
    make = _packed_layer if layer.int8 else plain_layer
    if rank is None:
        return [make(layer, **changes)]
    basis, coefficients = decomposed_layers(layer, rank, make, **changes)
    if not layer.int8:
        return [basis, coefficients]
    quantizer = layer.hidden_quantizer
    levels = QuantizeActivation(
        quantizer.bits, quantizer.signed, name=f"{basis.name}_levels"
    )
    return [basis, levels, coefficients]


def plain_layer(layer: "FactorizedKernel", **changes: Any) -> keras.layers.Layer:
    """Returns the plain layer of a factorized one, not built.

    Args:
        layer: a `FactorizedKernel`.
        changes: arguments of the plain layer that differ.
    """
    return layer.forms.plain.from_config(_plain_config(layer, changes))


def _packed_layer(layer, **changes):
    config = layer.inference_config(_plain_config(layer, changes))
    return layer.forms.packed.from_config({**config, "kernel_bits": BITS})


def _plain_config(layer, changes):
    known = inspect.signature(layer.forms.plain).parameters.keys()
    known = known | {"name", "trainable"}
    config = {k: value for k, value in config_of(layer).items() if k in known}
    return {**config, "dtype": "float32", **changes}


def decomposed_layers(
    layer: "FactorizedKernel",
    rank: int,
    make: Callable[..., keras.layers.Layer] = plain_layer,
    **changes: Any,
) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """Returns layers of the basis and of the coefficients, not built.

    Args:
        layer: a `FactorizedKernel`.
        rank: int. Filters of the basis.
        make: function that makes them, `plain_layer` or another of its arguments.
        changes: arguments of the second layer that differ.
    """
    basis = make(
        layer,
        name=f"{layer.name}_basis",
        use_bias=layer.int8 and layer.norms_hidden,
        activation=None,
        activity_regularizer=None,
        **{width_argument(layer): rank},
    )
    if not isinstance(layer, keras.layers.Dense):
        pointwise = {"kernel_size": 1, "strides": 1, "dilation_rate": 1}
        changes = {**pointwise, "padding": "valid", **changes}
    return basis, make(layer, **changes)


def width_argument(layer: keras.layers.Layer) -> str:
    """Returns the name of the argument that sets a layer's output channels."""
    return "units" if isinstance(layer, keras.layers.Dense) else "filters"
