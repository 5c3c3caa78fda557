"""Removing output channels from a model, with all that is stored for them."""

import numpy as np
from keras import ops

from tfcompress.layers import PackedKernel, QuantizedKernel
from tfcompress.surgery.channels import (
    DEPTHWISE,
    PRODUCERS,
    channel_spaces,
    input_spaces,
    width_argument,
)
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.rebuild import clone_layer, copy_weights, rebuild


def remove_channels(model, keep):
    """The same model with fewer output channels in some layers.

    The channels that are not kept disappear from the layers that make them, from
    those that carry them on (batch normalization, depthwise convolutions, PReLU),
    and from those that sum over them. All other weights are copied as they are.
    Where the removed channels were zero, the predictions stay what they were.

    Args:
        model: a built Functional or Sequential model of plain Keras layers, or a
            finalized one with `tfcompress.layers.Packed*` layers. It is left
            untouched.
        keep: `{name: indices}`, for each layer that is to lose output channels
            the indices of those that stay, ascending. Names are those of
            `tfcompress.surgery.channels.channel_spaces`: inside nested models
            "outer/inner".

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the model has no graph or has `Quant*` layers, a name is
            not that of a Conv1D, Conv2D or Dense layer, its channels are tied, or
            the indices are not ascending integers within the layer's channels.
    """
    graph = Graph(model)
    named_layers = graph.layers()
    _check_not_in_training(named_layers)
    keep = _checked(keep, channel_spaces(graph))
    inputs = input_spaces(graph)
    cuts = {
        id(layer): (_kept_inputs(inputs.get(name), keep), keep.get(name))
        for name, layer in named_layers.items()
    }

    def replace(layer):
        _, kept_outputs = cuts[id(layer)]
        if kept_outputs is None:
            return clone_layer(layer)
        return clone_layer(layer, **{width_argument(layer): len(kept_outputs)})

    new_model, pairs = rebuild(model, replace)
    for old, new in pairs:
        kept_inputs, kept_outputs = cuts[id(old)]
        if kept_inputs is None and kept_outputs is None:
            copy_weights(old, new)
        else:
            _copy_kept(old, new, kept_inputs, kept_outputs)
    return new_model


def _check_not_in_training(named_layers):
    names = [
        name
        for name, layer in named_layers.items()
        if isinstance(layer, QuantizedKernel)
    ]
    if names:
        raise ValueError(
            "A model of plain or packed layers is expected. Received one whose "
            f"layers quantize as they train: {_listed(names)}. Call "
            "`tfcompress.finalize` first."
        )


def _checked(keep, spaces):
    """`keep` with integer arrays, after all checks."""
    unknown = [name for name in keep if name not in spaces]
    if unknown:
        raise ValueError(
            "`keep` has names of Conv1D, Conv2D and Dense layers, here of: "
            f"{_listed(spaces)}. Received: {_listed(unknown)}. Take the names from "
            "`channel_spaces`."
        )
    return {name: _indices(kept, spaces[name]) for name, kept in keep.items()}


def _indices(kept, space):
    if space.tied:
        raise ValueError(
            f"The channels of '{space.producer}' cannot be removed: {space.tied}. "
            f"Leave '{space.producer}' out of `keep`."
        )
    indices = np.asarray(kept)
    if (
        indices.ndim != 1
        or indices.size == 0
        or not np.issubdtype(indices.dtype, np.integer)
        or indices.min() < 0
        or indices.max() >= space.channels
        or (indices[1:] <= indices[:-1]).any()
    ):
        raise ValueError(
            f"`keep['{space.producer}']` is a list of one or more different integers "
            f"from 0 to {space.channels - 1}, in ascending order. Received: {kept!r}. "
            "A layer has to keep at least one channel."
        )
    return indices


def _kept_inputs(space, keep):
    """Indices on the last axis of a layer's input that stay; None if all do."""
    if space is None or space.producer not in keep:
        return None
    return np.flatnonzero(np.isin(space.channel_of, keep[space.producer]))


def _copy_kept(old, new, kept_inputs, kept_outputs):
    """Copies the weights of one layer, but for the channels that are gone."""
    if not isinstance(old, (*PRODUCERS, *DEPTHWISE)):
        # Batch normalization and PReLU: channels are the last axis of all weights.
        new.set_weights(
            [_take(values, kept_inputs, -1) for values in old.get_weights()]
        )
        return
    # Kernels end in (input channels, filters), those of depthwise convolutions in
    # (input channels, multiplier), of which the multiplier stays as it is.
    filters = kept_outputs
    if isinstance(old, DEPTHWISE):
        kept_outputs = _behind_depthwise(kept_inputs, old.depth_multiplier)

    def cut(kernel):
        return _take(_take(kernel, kept_inputs, -2), filters, -1)

    if isinstance(old, PackedKernel):
        new.set_kernel(cut(old.codes), cut(ops.convert_to_numpy(old.kernel_scale)))
    else:
        new.kernel.assign(cut(ops.convert_to_numpy(old.kernel)))
    if old.use_bias:
        new.bias.assign(_take(ops.convert_to_numpy(old.bias), kept_outputs, -1))


def _behind_depthwise(kept_inputs, multiplier):
    """Input channel c makes the outputs c * multiplier + (0 ... multiplier - 1)."""
    return (kept_inputs[:, None] * multiplier + np.arange(multiplier)).ravel()


def _take(values, indices, axis):
    # Scales, and a PReLU's slopes, are shared along axes of size one.
    if indices is None or values.shape[axis] == 1:
        return values
    return np.take(values, indices, axis)


def _listed(names):
    return ", ".join(f"'{name}'" for name in names)
