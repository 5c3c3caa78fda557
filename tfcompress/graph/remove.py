"""Removing channels from a model, with all that is stored for them."""

import functools
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
from keras import ops

from tfcompress.arguments import listed
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import PackedKernel, QuantizedKernel
from tfcompress.types import ArrayLike


def remove_channels(
    model: keras.Model, keep: Mapping[str, Sequence[int] | np.ndarray]
) -> keras.Model:
    """Returns the model with fewer output channels in some layers.

    Channels are removed from the layers that make them, carry them (batch
    normalization, depthwise convolutions, PReLU) and sum over them. Channels of the
    same dependency groups are removed from all other layers. All other weights are
    copied. Where all readers read zeros in the removed channels, the predictions stay
    the same.

    Args:
        model: built Functional or Sequential model of plain Keras layers, or a
            finalized one with `tfcompress.layers.Packed*` layers. It is left
            untouched.
        keep: `{name: indices}`. For each layer that loses output channels, the indices
            of those that stay, ascending. Names are those of `Channels.written`:
            "outer/inner" inside nested models.

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the model has no graph or has `Quant*` layers, or a name is not
            that of a layer that makes channels. Also if indices are not ascending
            integers within the layer's channels, removed channels are frozen or tied
            to channels that stay, or a tensor would lose all channels.
    """
    channels = Channels(Graph(model))
    dropped: np.ndarray = np.zeros(len(channels.frozen), bool)
    kept = _checked_indices(keep, channels.written)
    for name, indices in kept.items():
        dropped[np.delete(channels.written[name], indices)] = True
    for name, indices in kept.items():
        _check_not_tied(name, indices, channels.written[name], dropped)
    return remove_groups(model, channels, dropped)


def remove_groups(
    model: keras.Model, channels: Channels, dropped: ArrayLike
) -> keras.Model:
    """Returns the model without some dependency groups of its channels.

    Args:
        model: as for `remove_channels`.
        channels: `Channels(Graph(model))`.
        dropped: boolean array over the groups of `channels`, true where a group is
            removed.

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the model has `Quant*` layers, `dropped` has another shape, a
            removed group is frozen, or a tensor would lose all channels.
    """
    _check_not_in_training(model)
    dropped = np.asarray(dropped, bool)
    _check_removable(channels, dropped)

    def count(groups: np.ndarray) -> int:
        return int((~dropped[groups]).sum())

    def changes(operation):
        found = channels.resized.get(id(operation))
        return found.changes(count) if found else {}

    def replace_operation(operation):
        changed = changes(operation)
        if "key" in changed:  # of `x[key]`, an argument of the call
            return functools.partial(_get_item, clone_layer(operation), changed["key"])
        return clone_layer(operation, **changed)

    new_model, pairs = rebuild(
        model,
        lambda layer: clone_layer(layer, **changes(layer)),
        replace_operation,
    )
    for old, new in pairs:
        found = channels.resized.get(id(old))
        if found and found.weights:
            _copy_kept(old, new, found.weights, ~dropped)
        else:
            copy_weights(old, new)
    return new_model


def _checked_indices(
    keep: Mapping[str, ArrayLike], written: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`keep` with int arrays."""
    unknown = [name for name in keep if name not in written]
    if unknown:
        raise ValueError(
            "`keep` has names of layers that make channels, here of: "
            f"{_quoted(written)}. Received: {_quoted(unknown)}. Take the names from "
            "`Channels.written`."
        )
    return {name: _indices(name, kept, written[name]) for name, kept in keep.items()}


def _indices(name, kept, written):
    indices = np.asarray(kept)
    if (
        indices.ndim != 1
        or indices.size == 0
        or not np.issubdtype(indices.dtype, np.integer)
        or indices.min() < 0
        or indices.max() >= len(written)
        or (indices[1:] <= indices[:-1]).any()
    ):
        raise ValueError(
            f"`keep['{name}']` is a list of one or more different integers "
            f"from 0 to {len(written) - 1}, in ascending order. Received: {kept!r}. "
            "A layer has to keep at least one channel."
        )
    return indices


def _check_not_tied(name, indices, written, dropped):
    torn = indices[dropped[written[indices]]].tolist()
    if torn:
        raise ValueError(
            f"`keep['{name}']` has to leave out channels tied to removed ones. "
            f"Received: {indices.tolist()}, of which {torn} are tied to channels that "
            "`keep` removes. `Channels.details()` lists tied channels."
        )


def _check_not_in_training(model):
    names = [
        name
        for name, layer in Graph(model).layers().items()
        if isinstance(layer, QuantizedKernel)
    ]
    if names:
        raise ValueError(
            "A model of plain or packed layers is expected. Received one whose "
            f"layers quantize as they train: {_quoted(names)}. Call "
            "`tfcompress.finalize` first."
        )


def _check_removable(channels, dropped):
    if dropped.shape != (len(channels.frozen),):
        raise ValueError(
            f"`dropped` is a boolean array of shape ({len(channels.frozen)},), one "
            f"for each dependency group. Received: shape {dropped.shape}. Make it for "
            "the `Channels` of this model."
        )
    for name, groups in channels.tensors:
        frozen = [g for g in groups[dropped[groups]] if channels.frozen[g]]
        if frozen:
            raise ValueError(
                "Only channels that nothing freezes can be removed. Received some of "
                f"'{name}', which stay: {channels.frozen[frozen[0]]}. Keep all "
                f"channels of '{name}' and all that are tied to them."
            )
    for name, groups in channels.tensors:
        if len(groups) and dropped[groups].all():
            raise ValueError(
                f"At least one channel that '{name}' makes is expected to stay. "
                "Received: none of them. Keep one."
            )


def _copy_kept(old, new, weights, stays):
    """Copies the weights of one layer's kept channels."""

    def cut(values, axes):
        for axis, groups in axes.items():
            # Scales and a PReLU's slopes are shared along axes of size one.
            if values.shape[axis] != 1:
                values = np.compress(stays[groups], values, axis)
        return values

    for name, axes in weights.items():
        if isinstance(old, PackedKernel) and name == old.forms.kernel:
            scale = ops.convert_to_numpy(old.kernel_scale)
            new.set_kernel(cut(old.codes, axes), cut(scale, axes))
        elif getattr(old, name) is not None:
            values = ops.convert_to_numpy(getattr(old, name))
            getattr(new, name).assign(cut(values, axes))


def _get_item(operation, key, x, *_, **__):
    return operation(x, key)


def _quoted(names: Iterable[str]) -> str:
    return listed([f"'{name}'" for name in names])
