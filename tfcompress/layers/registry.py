"""Table of the forms of each kind of layer."""

import dataclasses
from typing import Any

import keras

from tfcompress.layers import (
    embedding,
    factorized,
    factorized_norm,
    packed,
    quantized,
)
from tfcompress.layers.recurrent import convolution
from tfcompress.layers.recurrent import forms as recurrent_forms
from tfcompress.layers.recurrent import steps as recurrent

# Axes of output channels. A transposed kernel has its input channels after them. Those
# of a depthwise kernel are input channel and multiplier, together.
LAST_AXIS = (-1,)
TRANSPOSED_AXIS = (-2,)
DEPTHWISE_AXES = (-2, -1)
# A table has a scale for each of its rows.
ROWS_AXIS = (-2,)


@dataclasses.dataclass(frozen=True)
class Forms:
    """Forms of one kind of layer.

    Attributes:
        plain: type. Layer of `keras.layers`.
        quantized: type. Training layer with a quantized kernel.
        packed: type. Inference layer with integer codes.
        factorized: type or None. Training layer with a factorized kernel; None for
            depthwise kernels, which have no low rank, and for transposed and
            three-dimensional ones.
        factorized_norm: type or None. The same with batch normalization between the
            factors.
        channel_axes: tuple of int. Axes of output channels in the kernel, negative.
        kernel: str. Attribute of the kernel, and name of its variable.
        is_linear: bool. Whether the layer multiplies its input by the kernel, with one
            output channel for each of the kernel's. Its input can be quantized, a batch
            normalization folded into it, and its filters removed.
        legacy_kernel: str. Attribute of the kernel in Keras 2 (`tf_keras`).
        own: `OwnForms`, or None for layers of Keras.
    """

    plain: type[keras.layers.Layer]
    quantized: type[keras.layers.Layer]
    packed: type[keras.layers.Layer]
    factorized: type[keras.layers.Layer] | None = None
    factorized_norm: type[keras.layers.Layer] | None = None
    channel_axes: tuple[int, ...] = LAST_AXIS
    kernel: str = "kernel"
    is_linear: bool = True
    legacy_kernel: str = "kernel"
    own: Any = None

    def classes(self) -> tuple[type, ...]:
        """Returns the classes of all forms that exist."""
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
    Forms(keras.layers.Conv3D, quantized.QuantConv3D, packed.PackedConv3D),
    Forms(
        keras.layers.Conv1DTranspose,
        quantized.QuantConv1DTranspose,
        packed.PackedConv1DTranspose,
        channel_axes=TRANSPOSED_AXIS,
    ),
    Forms(
        keras.layers.Conv2DTranspose,
        quantized.QuantConv2DTranspose,
        packed.PackedConv2DTranspose,
        channel_axes=TRANSPOSED_AXIS,
    ),
    Forms(
        keras.layers.DepthwiseConv1D,
        quantized.QuantDepthwiseConv1D,
        packed.PackedDepthwiseConv1D,
        channel_axes=DEPTHWISE_AXES,
        legacy_kernel="depthwise_kernel",
    ),
    Forms(
        keras.layers.DepthwiseConv2D,
        quantized.QuantDepthwiseConv2D,
        packed.PackedDepthwiseConv2D,
        channel_axes=DEPTHWISE_AXES,
        legacy_kernel="depthwise_kernel",
    ),
    Forms(
        keras.layers.Embedding,
        embedding.QuantEmbedding,
        embedding.PackedEmbedding,
        channel_axes=ROWS_AXIS,
        kernel="embeddings",
        is_linear=False,
    ),
    Forms(
        keras.layers.ReversibleEmbedding,
        embedding.QuantReversibleEmbedding,
        embedding.PackedReversibleEmbedding,
        channel_axes=ROWS_AXIS,
        kernel="embeddings",
        is_linear=False,
    ),
    Forms(
        recurrent.LSTMSteps,
        recurrent_forms.QuantLSTMSteps,
        recurrent_forms.PackedLSTMSteps,
        is_linear=False,
    ),
    Forms(
        recurrent.GRUSteps,
        recurrent_forms.QuantGRUSteps,
        recurrent_forms.PackedGRUSteps,
        is_linear=False,
    ),
    Forms(
        recurrent.SimpleRNNSteps,
        recurrent_forms.QuantSimpleRNNSteps,
        recurrent_forms.PackedSimpleRNNSteps,
        is_linear=False,
    ),
    Forms(
        convolution.ConvLSTMSteps,
        recurrent_forms.QuantConvLSTMSteps,
        recurrent_forms.PackedConvLSTMSteps,
        is_linear=False,
    ),
)
_ROWS = {kind: forms for forms in FORMS for kind in forms.classes()}


def add_forms(forms: Forms) -> None:
    """Adds the forms of a user's class to the table, or replaces them."""
    _ROWS.update(dict.fromkeys(forms.classes(), forms))


def forms_of(layer: keras.layers.Layer) -> Any:
    """Returns the `Forms` of a layer, or None if the table has none.

    A subclass of a layer of this library has that layer's forms. A subclass of a
    Keras layer has none: it may compute something else.

    Args:
        layer: Keras layer or operation.
    """
    if type(layer) in _ROWS:
        return _ROWS[type(layer)]
    ours = [kind for kind in type(layer).__mro__ if kind in _ROWS]
    if ours and ours[0].__module__.startswith("tfcompress."):
        return _ROWS[ours[0]]
    return None
