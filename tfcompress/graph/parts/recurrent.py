"""Recurrent layers, split into a layer on all inputs and the steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from tfcompress.compat import keras_private
from tfcompress.graph.parts.examples import NoPartsError
from tfcompress.graph.parts.wrappers import on_all_steps
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import value_of
from tfcompress.layers.recurrent.convolution import ConvLSTMSteps
from tfcompress.layers.recurrent.steps import (
    GRUSteps,
    LSTMSteps,
    RecurrentSteps,
    SimpleRNNSteps,
)
from tfcompress.layers.tensors.masking import AttachMask

STEPS: dict[type, type[RecurrentSteps]] = {
    layers.LSTM: LSTMSteps,
    layers.GRU: GRUSteps,
    layers.SimpleRNN: SimpleRNNSteps,
    layers.ConvLSTM1D: ConvLSTMSteps,
    layers.ConvLSTM2D: ConvLSTMSteps,
    layers.ConvLSTM3D: ConvLSTMSteps,
}
KINDS = tuple(STEPS)
SUFFIX = "_input"
# Convolutions of the inputs, by the number of axes of their kernel size.
_CONVOLUTIONS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
# Arguments of both parts. Those of the kernel of the inputs begin with "kernel_", and
# those of the other with "recurrent_".
_SHARED = ("trainable", "dtype")
_OF_THE_INPUTS = ("use_bias", "bias_regularizer", "bias_constraint")
_OF_A_CONVOLUTION = ("kernel_size", "strides", "padding", "dilation_rate")
_OF_THE_STEPS = (
    *("name", "units", "activation", "recurrent_activation", "reset_after"),
    *("use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer"),
    *("recurrent_dropout", "return_sequences", "return_state", "go_backwards"),
    *("stateful", "unroll", "zero_output_for_mask"),
)
_OF_A_KERNEL = ("initializer", "regularizer", "constraint")


def parts(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that take the place of a recurrent one, not built.

    A layer with the layer's name and "_input" computes the products of all inputs: a
    `Dense` layer, or a convolution for a `ConvLSTM`. A
    `tfcompress.layers.RecurrentSteps` has the layer's name. Where inputs are dropped in
    training, a layer that does comes first: the same values are dropped in all steps.
    A `ConvLSTM` drops others for each gate, and so does a `recurrent_dropout`; here
    they are the same for all gates.

    Args:
        layer: layer whose type is one of `STEPS`.

    Raises:
        NoPartsError: if its channels come first.
    """
    config = config_of(layer)
    if config.get("data_format") == "channels_first":
        raise NoPartsError("has data_format='channels_first'")
    kind = STEPS[type(layer)]
    shared = {key: config[key] for key in _SHARED}
    own = {key: config[key] for key in _OF_THE_STEPS if key in config}
    if kind is not GRUSteps:  # the others have one bias, which the inputs get
        own = {key: value for key, value in own.items() if "bias" not in key}
    if kind is ConvLSTMSteps:
        own.update(units=layer.filters, kernel_size=layer.kernel_size)
    own.update({f"kernel_{key}": config[f"recurrent_{key}"] for key in _OF_A_KERNEL})
    chain = [
        _of_the_inputs(layer, config, kind.gates),
        kind.from_config({**shared, **own, "seed": layer.cell.seed}),
    ]
    return [_dropout(layer), *chain] if layer.dropout else chain


def chain(parts: Sequence[keras.layers.Layer]) -> list[Callable[..., Any]]:
    """Returns the parts as functions of sequences; a convolution takes their steps."""
    return [
        functools.partial(_convolve, part)
        if isinstance(part, tuple(_CONVOLUTIONS.values()))
        else part
        for part in parts
    ]


def _convolve(layer, inputs):
    outputs = on_all_steps(layer, inputs)
    mask = keras_private.mask_of(inputs)
    return outputs if mask is None else AttachMask(dtype=outputs.dtype)(outputs, mask)


def _of_the_inputs(layer, config, gates):
    """The layer that computes the products of all inputs."""
    arguments = {
        "name": f"{layer.name}{SUFFIX}",
        **{key: config[key] for key in (*_SHARED, *_OF_THE_INPUTS)},
        **{f"kernel_{key}": config[f"kernel_{key}"] for key in _OF_A_KERNEL},
    }
    if not hasattr(layer, "kernel_size"):
        return layers.Dense(gates * layer.units, **arguments)
    arguments.update({key: config[key] for key in _OF_A_CONVOLUTION})
    kind = _CONVOLUTIONS[len(layer.kernel_size)]
    return kind(gates * layer.filters, data_format="channels_last", **arguments)


def _dropout(layer):
    """The layer that drops the same values in all steps."""
    axes = len(getattr(layer, "kernel_size", ()))
    return layers.Dropout(
        layer.dropout,
        noise_shape=(None, 1, *[None] * axes, None),
        seed=layer.cell.seed,
        name=f"{layer.name}_dropout",
        dtype=layer.dtype_policy,
    )


def copy_weights(old: Any, new: list[Any]) -> None:
    """Gives the built `parts` of a layer its weights, and the states of its last batch.

    Args:
        old: recurrent layer.
        new: list that `parts` returned.
    """
    *_, inputs, steps = new
    inputs.kernel.assign(value_of(old.cell.kernel))
    steps.kernel.assign(value_of(old.cell.recurrent_kernel))
    if old.use_bias:
        bias = value_of(old.cell.bias)
        if getattr(steps, "use_bias", False):
            bias, of_the_state = bias
            steps.bias.assign(of_the_state)
        inputs.bias.assign(bias)
    for state, value in zip(steps.states or [], old.states or [], strict=True):
        state.assign(value_of(value))
