"""Layers made of other layers, traced into Functional models of these."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.graph.graph import is_model
from tfcompress.graph.parts.examples import (
    NoPartsError,
    brief,
    examples,
    message,
    same_outputs,
)
from tfcompress.graph.parts.sources import (
    as_tensors,
    constants_as_tensors,
    open_sizes,
    own_weights,
)
from tfcompress.graph.parts.state import (
    check_all_used,
    check_own_state,
    only_parts_have_state,
    operations,
)
from tfcompress.graph.parts.wrappers import call_of
from tfcompress.layers import TrainingForm
from tfcompress.layers.registry import forms_of
from tfcompress.layers.tensors.masking import AttachMask


def may_nest(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer has sublayers with kernels, which schemes can treat."""
    if is_model(layer) or isinstance(layer, (keras.layers.RNN, TrainingForm)):
        return False
    if forms_of(layer) is not None:
        return False
    inner = keras_private.flatten_layers(layer)[1:]
    return any(len(weight.shape) > 1 for part in inner for weight in part.weights)


def trace(
    layer: keras.layers.Layer,
    args: tuple,
    kwargs: dict[str, Any],
    as_given: bool = False,
) -> Any:
    """Returns a Functional model of the sublayers of a layer, with their weights.

    The layer's `call` runs on symbolic inputs. Its sublayers are not copied. Masks of
    the inputs become inputs of the model, after all others.

    Args:
        layer: built layer with sublayers.
        args, kwargs: arguments of its call, with `KerasTensor`s.
        as_given: bool. Whether the model takes the first argument as it is.

    Returns:
        A Functional `keras.Model` of the list that `tensors_of` returns for such
        arguments, or of the first argument.

    Raises:
        NoPartsError: if the layer computes differently in training, or by
            anything but layers, weights and `keras.ops`, or if the model does not
            compute the same.
    """
    if getattr(layer, "activity_regularizer", None) is not None:
        raise NoPartsError("has an activity regularizer")
    check_own_state(layer)
    try:
        weights = own_weights(layer)
        model = _traced(layer, args, kwargs, weights, False, as_given)
        in_training = _traced(layer, args, kwargs, weights, True)
        modes = [operations(model, False), operations(in_training, True)]
    except NoPartsError as error:
        raise NoPartsError(message(error)) from error
    except Exception as error:
        raise NoPartsError(
            "has a `call` that computes by more than layers and keras.ops "
            f"({brief(error)})"
        ) from error
    if modes[0] != modes[1]:
        raise NoPartsError("computes differently in training")
    check_all_used(layer, model)
    _check_outputs(layer, model, args, kwargs, as_given)
    return model


def tensors_of(
    args: tuple, kwargs: dict[str, Any]
) -> tuple[list[keras.KerasTensor], list[keras.KerasTensor]]:
    """Returns `(tensors, masks)`: symbolic tensors of a call, and masks of these."""
    leaves = keras.tree.flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if keras.utils.is_keras_tensor(leaf)]
    masks = [keras_private.mask_of(tensor) for tensor in tensors]
    return tensors, [mask for mask in masks if mask is not None]


def form_of(args: tuple, kwargs: dict[str, Any]) -> Any:
    """Returns the arguments of a call with types in place of tensors.

    Sizes are a part of it for tensors with masks alone.
    """
    return keras.tree.map_structure(_described, (args, kwargs), none_is_leaf=False)


def with_shapes(
    args: tuple, kwargs: dict[str, Any], shapes: Sequence[Sequence[int | None]]
) -> tuple[tuple, dict[str, Any]]:
    """Returns the arguments of a call with new symbolic tensors of other shapes.

    Tensors whose shape stays as it is are not replaced.
    """
    old, _ = tensors_of(args, kwargs)
    pairs = zip(old, shapes, strict=True)
    return _filled(
        args,
        kwargs,
        [x if x.shape == tuple(n) else keras.KerasTensor(n, x.dtype) for x, n in pairs],
    )


def _described(value):
    if not keras.utils.is_keras_tensor(value):
        return repr(value)
    masked = keras_private.mask_of(value) is not None
    return f"{value.dtype} {value.shape if masked else len(value.shape)} {masked}"


def _traced(layer, args, kwargs, weights, training, as_given=False):
    """Functional model of the sublayers, and of the layer's own weights.

    Keras calls all of them in the mode of the model's call, not in that of the trace.
    """
    tensors, masks = tensors_of(args, kwargs)
    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in tensors]
    new_masks = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in masks]
    queue = iter(new_masks)
    taken = []
    for old, new in zip(tensors, inputs, strict=True):
        floats = keras.backend.is_float_dtype(new.dtype)
        if layer.autocast and floats and new.dtype != layer.compute_dtype:
            new = ops.cast(new, layer.compute_dtype)
        if keras_private.mask_of(old) is not None:
            keras_private.set_mask(new, next(queue))
        taken.append(new)
    given = _filled(args, kwargs, inputs)[0][0] if as_given else inputs + new_masks
    args, kwargs = _filled(args, kwargs, taken)
    kwargs.update(_mask_arguments(layer, args, kwargs))
    parameters = inspect.signature(layer.call).parameters
    if "training" in parameters:
        if parameters["training"].default is True:
            raise NoPartsError("runs in training mode by default")
        kwargs["training"] = training
    previous = keras_private.mask_of(taken[0]) if taken else None
    with keras_private.tracing(layer, training):
        with _sources(layer, weights, taken):
            outputs = call_of(layer)(*args, **kwargs)
        outputs = _with_masks(layer, taken, outputs, previous)
        return keras.Model(given, outputs, name=layer.name)


@contextlib.contextmanager
def _sources(layer, weights, tensors):
    """Makes the weights, constants and sizes of a `call` tensors, in a `with`."""
    with contextlib.ExitStack() as stack:
        if tensors:
            stack.enter_context(as_tensors(layer, weights, tensors[0]))
        scope = stack.enter_context(only_parts_have_state(layer))
        if tensors:
            stack.enter_context(constants_as_tensors(layer, scope, tensors[0]))
        stack.enter_context(open_sizes())
        yield


def _filled(args, kwargs, tensors):
    """Arguments of a call, with other tensors."""
    queue = iter(tensors)
    return keras.tree.map_structure(
        lambda x: next(queue) if keras.utils.is_keras_tensor(x) else x, (args, kwargs)
    )


def _mask_arguments(layer, args, kwargs):
    """Masks that Keras passes to a layer that takes them as arguments."""
    parameters = inspect.signature(layer.call).parameters
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    tensors = {
        key: value
        for key, value in bound.items()
        if any(map(keras.utils.is_keras_tensor, keras.tree.flatten(value)))
    }
    if len(tensors) == 1 and "mask" in parameters and "mask" not in bound:
        (value,) = tensors.values()
        return {"mask": keras.tree.map_structure(keras_private.mask_of, value)}
    return {
        f"{key}_mask": keras.tree.map_structure(keras_private.mask_of, value)
        for key, value in tensors.items()
        if f"{key}_mask" in parameters and f"{key}_mask" not in bound
    }


def _with_masks(layer, inputs, outputs, previous):
    """Outputs with the masks that the layer attaches to them."""
    flat = keras.tree.flatten(outputs)
    masks = [keras_private.mask_of(x) for x in flat]
    if previous is not None and layer.supports_masking and masks == [None]:
        masks = [layer.compute_mask(inputs[0], previous)]
    new = [
        x if mask is None else AttachMask(dtype=x.dtype)(x, mask)
        for x, mask in zip(flat, masks, strict=True)
    ]
    return keras.tree.pack_sequence_as(outputs, new)


def _check_outputs(layer, model, args, kwargs, as_given):
    """Raises NoPartsError unless layer and model agree on example inputs."""
    tensors, masks = tensors_of(args, kwargs)
    arrays, copies = examples(tensors), examples(tensors)
    mask_arrays = examples(masks)
    queue = iter(mask_arrays)
    for tensor, array in zip(tensors, arrays, strict=True):
        if keras_private.mask_of(tensor) is not None:
            keras_private.set_mask(array, next(queue))
    filled_args, filled_kwargs = _filled(args, kwargs, arrays)
    given = _filled(args, kwargs, copies)[0][0] if as_given else copies + mask_arrays
    # Layers of random images are in training by default, and pass that on.
    filled_kwargs = {"training": False, **filled_kwargs}
    same_outputs(
        lambda: layer(*filled_args, **filled_kwargs),
        lambda: model(given, training=False),
    )
