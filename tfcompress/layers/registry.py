"""The forms that each kind of layer takes: one table for the whole library."""

import dataclasses

import keras

from tfcompress.layers import factorized, factorized_norm, packed, quantized

# A kernel ends in its output channels; the last two axes of a depthwise kernel, input
# channel and multiplier, are its output channels together.
LAST_AXIS = (-1,)
DEPTHWISE_AXES = (-2, -1)


@dataclasses.dataclass(frozen=True)
class Forms:
    """The forms of one kind of layer.

    Attributes:
        plain: type. Class of `keras.layers`.
        quantized: type. Quantizes its kernel in training.
        packed: type. Holds integer codes in inference.
        factorized: type or None. Trains a basis times coefficients; None where a low
            rank means nothing.
        factorized_norm: type or None. The same with batch normalization between both.
        channel_axes: tuple of int. The kernel's axes of output channels.
        legacy_kernel: str. Attribute of the kernel in Keras 2 (`tf_keras`).
    """

    plain: type
    quantized: type
    packed: type
    factorized: type | None = None
    factorized_norm: type | None = None
    channel_axes: tuple[int, ...] = LAST_AXIS
    legacy_kernel: str = "kernel"

    def classes(self) -> tuple[type, ...]:
        """All forms that there are."""
        return tuple(
            kind
            for kind in (
                self.plain,
                self.quantized,
                self.packed,
                self.factorized,
                self.factorized_norm,
            )
            if kind is not None
        )


FORMS = (
    Forms(
        keras.layers.Conv1D,
        quantized.QuantConv1D,
        packed.PackedConv1D,
        factorized.FactorizedConv1D,
        factorized_norm.FactorizedNormConv1D,
    ),
    Forms(
        keras.layers.Conv2D,
        quantized.QuantConv2D,
        packed.PackedConv2D,
        factorized.FactorizedConv2D,
        factorized_norm.FactorizedNormConv2D,
    ),
    Forms(
        keras.layers.Dense,
        quantized.QuantDense,
        packed.PackedDense,
        factorized.FactorizedDense,
        factorized_norm.FactorizedNormDense,
    ),
    Forms(
        keras.layers.DepthwiseConv2D,
        quantized.QuantDepthwiseConv2D,
        packed.PackedDepthwiseConv2D,
        channel_axes=DEPTHWISE_AXES,
        legacy_kernel="depthwise_kernel",
    ),
)
_ROWS = {kind: forms for forms in FORMS for kind in forms.classes()}


def forms_of(layer: keras.layers.Layer) -> Forms | None:
    """The `Forms` of a layer, or None if the table has none.

    A subclass of a class of this library counts as that class. A subclass of one of
    Keras's does not: it may compute something else.

    Args:
        layer: a Keras layer or operation.
    """
    if type(layer) in _ROWS:
        return _ROWS[type(layer)]
    ours = [kind for kind in type(layer).__mro__ if kind in _ROWS]
    if ours and ours[0].__module__.startswith("tfcompress."):
        return _ROWS[ours[0]]
    return None
