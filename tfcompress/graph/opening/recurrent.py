"""Recurrent layers, split into a dense layer on all inputs and the steps."""

from typing import Any

import keras
from keras import layers

from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import value_of
from tfcompress.layers.recurrent import (
    GRUSteps,
    LSTMSteps,
    RecurrentSteps,
    SimpleRNNSteps,
)

STEPS: dict[type, type[RecurrentSteps]] = {
    layers.LSTM: LSTMSteps,
    layers.GRU: GRUSteps,
    layers.SimpleRNN: SimpleRNNSteps,
}
KINDS = tuple(STEPS)
SUFFIX = "_input"
# Arguments of both parts. Those of the kernel of the inputs begin with "kernel_", and
# those of the other with "recurrent_".
_SHARED = ("trainable", "dtype")
_OF_THE_STEPS = (
    *("name", "units", "activation", "recurrent_activation", "reset_after"),
    *("use_bias", "bias_regularizer", "bias_constraint", "activity_regularizer"),
    *("recurrent_dropout", "return_sequences", "return_state", "go_backwards"),
    *("stateful", "unroll", "zero_output_for_mask"),
)
_OF_A_KERNEL = ("initializer", "regularizer", "constraint")


def parts(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that take the place of a recurrent one, not built.

    A `Dense` layer with the layer's name and "_input" computes the products of all
    inputs. A `tfcompress.layers.RecurrentSteps` has the layer's name. Where inputs are
    dropped in training, a `SpatialDropout1D` comes first: the same values are dropped
    in all steps. With a `recurrent_dropout` Keras drops others for each gate; here they
    are the same.

    Args:
        layer: layer whose type is one of `STEPS`.
    """
    config = config_of(layer)
    kind = STEPS[type(layer)]
    shared = {key: config[key] for key in _SHARED}
    dense = layers.Dense(
        kind.gates * layer.units,
        name=f"{layer.name}{SUFFIX}",
        use_bias=layer.use_bias,
        bias_regularizer=config["bias_regularizer"],
        bias_constraint=config["bias_constraint"],
        **{f"kernel_{key}": config[f"kernel_{key}"] for key in _OF_A_KERNEL},
        **shared,
    )
    own = {key: config[key] for key in _OF_THE_STEPS if key in config}
    if kind is not GRUSteps:  # the others have one bias, which the inputs get
        own = {key: value for key, value in own.items() if "bias" not in key}
    own.update({f"kernel_{key}": config[f"recurrent_{key}"] for key in _OF_A_KERNEL})
    chain = [dense, kind.from_config({**shared, **own, "seed": layer.cell.seed})]
    if layer.dropout:
        dropped = layers.SpatialDropout1D(
            layer.dropout,
            seed=layer.cell.seed,
            name=f"{layer.name}_dropout",
            dtype=config["dtype"],
        )
        chain.insert(0, dropped)
    return chain


def copy_weights(old: Any, new: list[Any]) -> None:
    """Gives the built `parts` of a layer its weights, and the states of its last batch.

    Args:
        old: recurrent layer.
        new: list that `parts` returned.
    """
    *_, dense, steps = new
    dense.kernel.assign(value_of(old.cell.kernel))
    steps.kernel.assign(value_of(old.cell.recurrent_kernel))
    if old.use_bias:
        bias = value_of(old.cell.bias)
        if getattr(steps, "use_bias", False):
            bias, of_the_state = bias
            steps.bias.assign(of_the_state)
        dense.bias.assign(bias)
    for state, value in zip(steps.states or [], old.states or [], strict=True):
        state.assign(value_of(value))
