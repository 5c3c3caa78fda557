"""Inference layers that store their kernels as packed integer codes."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat.tensorflow_private import avoid_fused_pads
from tfcompress.layers.kernel import ComputedKernel, channel_axis
from tfcompress.quantizers.packing import container_bits, pack, packed_bytes, unpack
from tfcompress.types import ArrayLike, Tensor


class PackedKernel(ComputedKernel):
    """Mixin that stores the kernel of a Keras layer as packed codes and scales.

    The mixin comes before the Keras layer among the bases. The kernel is `codes *
    kernel_scale`. A uint8 variable holds the codes in containers of 2, 4 or 8 bits,
    lowest bits first, so that a `.keras` file is small. Every call decodes them: this
    saves storage, not time.

    Args:
        kernel_bits: int. Bits of a code, 2 to 8 (2 for ternary).

    Variables, not trainable:
        kernel_scale: float, one value above 0 per output channel, broadcastable.
        packed_kernel: uint8 (bytes,). Packed codes.

    Attributes:
        container_bits: int. Bits that store one code: 2, 4 or 8.
        kernel_shape: tuple of int. Shape of the decoded kernel.

    Raises:
        ValueError: if `kernel_bits` is not from 2 to 8.
    """

    def __init__(self, *args: Any, kernel_bits: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.container_bits = container_bits(kernel_bits)
        self.kernel_bits = kernel_bits
        self.trainable = False

    def add_weight(
        self,
        shape: tuple[int, ...] = (),
        initializer: Any = None,
        *args: Any,
        name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Adds packed codes and scales in place of Keras's float kernel."""
        if name != self.forms.kernel:
            return super().add_weight(shape, initializer, *args, name=name, **kwargs)
        return self.add_packed(shape)

    def add_packed(self, shape: tuple[int, ...]) -> Any:
        """Adds packed codes and scales of a kernel, and returns the variable of codes.

        Args:
            shape: tuple of int. Shape of the kernel.
        """
        self.kernel_shape = tuple(shape)
        channels = {axis % len(shape) for axis in self.channel_axes}
        self.kernel_scale = super().add_weight(
            [n if i in channels else 1 for i, n in enumerate(shape)],
            "ones",
            name="kernel_scale",
            trainable=False,
        )
        return super().add_weight(
            (packed_bytes(math.prod(shape), self.container_bits),),
            "zeros",
            name="packed_kernel",
            dtype="uint8",
            trainable=False,
        )

    def own_weights(self) -> list[Any]:
        return [self.kernel_scale, self.kernel_variable]

    def set_kernel(self, codes: ArrayLike, scale: ArrayLike) -> None:
        """Sets codes and scales.

        Args:
            codes: integer array of the shape `kernel_shape`.
            scale: float array of the shape of `kernel_scale`, above 0.

        Raises:
            ValueError: if a shape is wrong, a code does not fit `kernel_bits`, or
                a scale is not a positive finite number.
        """
        codes, scale = np.asarray(codes), np.asarray(scale, np.float32)
        if codes.shape != self.kernel_shape or scale.shape != self.kernel_scale.shape:
            raise ValueError(
                f"Layer '{self.name}' holds codes of shape {self.kernel_shape} and "
                f"scales of shape {tuple(self.kernel_scale.shape)}. Received: "
                f"{codes.shape} and {scale.shape}."
            )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"The scales of layer '{self.name}' must be positive and finite. "
                f"Received: values in [{scale.min()}, {scale.max()}]."
            )
        self.kernel_variable.assign(pack(codes, self.container_bits))
        self.kernel_scale.assign(scale)

    @property
    def codes(self) -> np.ndarray:
        """Unpacked codes, an int8 array of the shape `kernel_shape`."""
        packed = ops.convert_to_numpy(self.kernel_variable)
        size = math.prod(self.kernel_shape)
        return unpack(packed, self.container_bits, size).reshape(self.kernel_shape)

    def compute_kernel(self) -> Tensor:
        """Returns the decoded kernel, `codes * kernel_scale`, in float32."""
        scale = ops.convert_to_tensor(self.kernel_scale)
        return self.decoded_codes(scale.dtype) * scale

    def decoded_codes(self, dtype: str) -> Tensor:
        """Returns the codes, a tensor of the shape `kernel_shape`."""
        bits, size = self.container_bits, math.prod(self.kernel_shape)
        packed = ops.cast(self.kernel_variable, "int32")[:, None]
        shifts = ops.arange(0, 8, bits, dtype="int32")
        codes = ops.reshape(_fields(packed, shifts, bits), (-1,))[:size]
        return ops.cast(ops.reshape(codes, self.kernel_shape), dtype)

    def codes_at(self, places: Tensor, dtype: str) -> Tensor:
        """Returns some of the codes, without decoding the others.

        Args:
            places: integer tensor. Places of weights in the flattened kernel.
            dtype: dtype of the result, which has the shape of `places`.
        """
        bits = self.container_bits
        per_byte = 8 // bits
        packed = ops.take(self.kernel_variable, places // per_byte, axis=0)
        shifts = ops.cast(places % per_byte * bits, "int32")
        return ops.cast(_fields(ops.cast(packed, "int32"), shifts, bits), dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **self.inference_config(super().get_config()),
            "kernel_bits": self.kernel_bits,
        }


def _fields(packed, shifts, bits):
    """Signed fields of `bits` bits, of int32 bytes."""
    fields = ops.bitwise_and(ops.right_shift(packed, shifts), 2**bits - 1)
    return ops.where(fields >= 2 ** (bits - 1), fields - 2**bits, fields)


class PackedProduct(PackedKernel):
    """`PackedKernel` of a layer that multiplies its input by the kernel.

    With `integer=True` the layer computes as an int8 operator of LiteRT does, with
    inputs and results on levels. It sums products of levels and codes, which float32
    holds exactly below 2^24. The bias is a whole number of units, the input's step
    times the kernel's scale. One multiplication brings a sum to levels of the result,
    where it is rounded half to even. The activation is computed afterwards.

    Args:
        integer: bool. Whether the layer computes with integers.

    Variables, not trainable:
        steps: float (2,). With `integer=True`: the distances of two levels of the input
            and of the result.
    """

    def __init__(self, *args: Any, integer: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.integer = bool(integer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        if self.integer:
            self.steps = self.add_weight(
                (2,), "ones", name="steps", trainable=False, dtype="float32"
            )

    def set_steps(self, steps: ArrayLike) -> None:
        """Sets `steps`, an array (2,)."""
        self.steps.assign(steps)

    def own_weights(self) -> list[Any]:
        return [*super().own_weights(), *([self.steps] if self.integer else [])]

    def call(self, inputs: Tensor) -> Tensor:
        if not self.integer:
            return super().call(inputs)
        step, result_step = self.steps[0], self.steps[1]
        unit = step * ops.reshape(self.kernel_scale, (-1,))
        codes = self.decoded_codes(self.kernel_scale.dtype)
        sums = self.forms.plain.call(_Sums(self, codes), ops.round(inputs / step))
        if self.use_bias:
            sums += self._along_channels(ops.round(self.bias / unit), sums)
        # The same order as in LiteRT, whose factors have these last bits.
        levels = ops.round(sums * self._along_channels(unit / result_step, sums))
        return self.activation(levels * result_step)

    def _along_channels(self, values, sums):
        shape = [1] * len(sums.shape)
        shape[channel_axis(self)] = -1
        return ops.reshape(values, shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "integer": True} if self.integer else config


class _Sums:
    """Stand-in for a layer in Keras's `call`, without bias and activation.

    Args:
        layer: packed layer.
        kernel: tensor in place of its kernel.
    """

    use_bias, bias, activation = False, None, None

    def __init__(self, layer: PackedProduct, kernel: Tensor) -> None:
        self._layer = layer
        self.kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConv1D(PackedProduct, keras.layers.Conv1D):
    """`keras.layers.Conv1D` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConv2D(PackedProduct, keras.layers.Conv2D):
    """`keras.layers.Conv2D` on packed codes."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.use_bias and keras.backend.backend() == "tensorflow":
            avoid_fused_pads()
        super().build(input_shape)


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConv1DTranspose(PackedProduct, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConv2DTranspose(PackedProduct, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConv3D(PackedProduct, keras.layers.Conv3D):
    """`keras.layers.Conv3D` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedDepthwiseConv1D(PackedProduct, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedDepthwiseConv2D(PackedProduct, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedDense(PackedProduct, keras.layers.Dense):
    """`keras.layers.Dense` on packed codes."""
