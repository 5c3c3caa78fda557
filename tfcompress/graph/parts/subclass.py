"""Layers of a user's class that compute what a layer of Keras does."""

from collections.abc import Sequence

import keras

from tfcompress.compat import keras_private
from tfcompress.graph.graph import own_classes
from tfcompress.graph.parts.examples import NoPartsError, examples, same_outputs
from tfcompress.graph.parts.state import variables_of
from tfcompress.graph.rebuild import copy_weights
from tfcompress.layers.cloning import config_of
from tfcompress.layers.registry import forms_of

# Methods that change nothing of what a layer computes.
_HARMLESS = (
    *("get_config", "from_config", "get_build_config", "build_from_config"),
    *("save_own_variables", "load_own_variables"),
)
# Special methods that do.
_SPECIAL = ("__call__", "__new__", "__setattr__", "__getattribute__")


def base_of(
    layer: keras.layers.Layer, kinds: Sequence[type[keras.layers.Layer]]
) -> type[keras.layers.Layer] | None:
    """Returns the class of Keras that a layer's own class is derived from.

    Args:
        layer: layer, of any class.
        kinds: classes of Keras.

    Returns:
        One of `kinds`. None if the layer is of one of them itself, of none, of a class
        that has forms, or if it has sublayers.
    """
    cls = type(layer)
    if cls in kinds or not isinstance(layer, tuple(kinds)):
        return None
    if forms_of(layer) is not None or keras_private.flatten_layers(layer)[1:]:
        return None
    return next(kind for kind in cls.__mro__ if kind in kinds)


def as_base(
    layer: keras.layers.Layer, base: type[keras.layers.Layer]
) -> keras.layers.Layer:
    """Returns a built layer of the class `base_of` with the same weights and name.

    Raises:
        NoPartsError: if the layer's class overrides a method that matters, has other
            variables, or if its outputs differ on example inputs.
    """
    changed = overridden(type(layer), base)
    if changed:
        raise NoPartsError(f"is a {base.__name__} with its own `{changed[0]}`")
    plain = base.from_config(config_of(layer, base))
    shape = (layer.get_build_config() or {}).get("input_shape")
    if shape is None:
        raise NoPartsError(f"is a {base.__name__} of unknown input shape")
    plain.build(shape)
    if [x.shape for x in variables_of(layer)] != [x.shape for x in plain.variables]:
        raise NoPartsError(f"is a {base.__name__} with variables of its own")
    copy_weights(layer, plain)
    symbolic = keras.KerasTensor((None, *shape[1:]), layer.compute_dtype)
    (inputs,) = examples([symbolic])
    same_outputs(lambda: layer(inputs), lambda: plain(inputs))
    return plain


def overridden(cls: type, base: type) -> list[str]:
    """Returns names of a class's attributes that a class derived from it overrides.

    Those that change nothing of what a layer computes are left out.

    Args:
        cls: class.
        base: one of its bases.
    """
    own = [x for x in own_classes(cls) if x not in base.__mro__]
    names = sorted({name for x in own for name in vars(x) if hasattr(base, name)})
    return [
        name
        for name in names
        if name in _SPECIAL or not (name.startswith("__") or name in _HARMLESS)
    ]
