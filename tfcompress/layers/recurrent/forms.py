"""Recurrent layers whose kernel of the state is quantized or packed."""

import keras

from tfcompress.layers.packed import PackedKernel
from tfcompress.layers.quantized import QuantizedKernel
from tfcompress.layers.recurrent.convolution import ConvLSTMSteps
from tfcompress.layers.recurrent.steps import GRUSteps, LSTMSteps, SimpleRNNSteps


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantLSTMSteps(QuantizedKernel, LSTMSteps):
    """`tfcompress.layers.LSTMSteps` with a `kernel_quantizer`; states stay float."""

    call = LSTMSteps.call


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantGRUSteps(QuantizedKernel, GRUSteps):
    """`tfcompress.layers.GRUSteps` with a `kernel_quantizer`; states stay float."""

    call = GRUSteps.call


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantSimpleRNNSteps(QuantizedKernel, SimpleRNNSteps):
    """`tfcompress.layers.SimpleRNNSteps` with a `kernel_quantizer`, on float states."""

    call = SimpleRNNSteps.call


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantConvLSTMSteps(QuantizedKernel, ConvLSTMSteps):
    """`tfcompress.layers.ConvLSTMSteps` with a `kernel_quantizer`, on float states."""

    call = ConvLSTMSteps.call


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedLSTMSteps(PackedKernel, LSTMSteps):
    """`tfcompress.layers.LSTMSteps` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedGRUSteps(PackedKernel, GRUSteps):
    """`tfcompress.layers.GRUSteps` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedSimpleRNNSteps(PackedKernel, SimpleRNNSteps):
    """`tfcompress.layers.SimpleRNNSteps` on packed codes."""


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedConvLSTMSteps(PackedKernel, ConvLSTMSteps):
    """`tfcompress.layers.ConvLSTMSteps` on packed codes."""
