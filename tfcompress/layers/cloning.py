"""Copies of layers, also of those that Keras cannot copy by their configuration."""

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfcompress.compat import keras_private

# Name of the stand-in for a live layer in the configuration of another layer.
_STAND_IN = "tfcompress>LiveLayer"
# Words of Keras between a whole configuration and the error in it.
_CAUSE = "Exception encountered: "
# Arguments of every layer that a class of the user may not take.
_COMMON = ("name", "trainable", "dtype")


def clone_layer(layer: keras.Operation, **changes: Any) -> Any:
    """Returns a new, unbuilt layer or operation like a live one.

    It has the class, the configuration and the name of the old one, and the same
    functions: a configuration cannot restore a lambda or a user's function. The
    vocabulary of a lookup is copied, too.

    Args:
        layer: layer or operation.
        **changes: entries that replace those of the configuration.

    Raises:
        ValueError: if no such layer can be made. The error names the layer.
    """
    if not isinstance(layer, keras.Operation):  # of Keras 2
        return type(layer).from_config({**layer.get_config(), **changes})
    try:
        new = _clone(layer, changes)
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"Layer '{layer.name}' of type {type(layer).__name__} must be one that can "
            "be copied. Give its class a `get_config` that returns all arguments of "
            "its constructor, as `keras.saving` needs it. Received: "
            f"{type(error).__name__}: {message.rpartition(_CAUSE)[2][:200]}"
        ) from error
    if "name" not in changes and new.name != layer.name:
        new.name = layer.name
    _copy_assets(layer, new)
    return new


def config_of(
    layer: keras.layers.Layer, kind: type[keras.layers.Layer] | None = None
) -> dict[str, Any]:
    """Returns the configuration of a layer, with its live functions.

    A user's functions, and objects of a user's classes such as regularizers, stand for
    themselves. Sublayers are serialized, as in `get_config`.

    Args:
        layer: layer.
        kind: class whose configuration it is, among the bases of that of the layer.
    """
    get_config = (kind or type(layer)).get_config
    unserializable: dict[str, Any] = {}
    try:
        config = dict(get_config(layer))
    except TypeError:
        with _without_callables(layer) as unserializable:
            config = dict(get_config(layer))
    for key, value in config.items():
        live = unserializable.get(key, getattr(layer, key, None))
        if key in unserializable or (isinstance(value, dict) and _is_users(live)):
            config[key] = live
    return config


def _is_users(live):
    """Whether a value is a function or callable object that is not of Keras."""
    if not callable(live) or isinstance(live, keras.Operation):
        return False
    owner = live if inspect.isfunction(live) else type(live)
    return owner.__module__.partition(".")[0] != "keras"


@contextlib.contextmanager
def _without_callables(layer: keras.layers.Layer) -> Iterator[dict[str, Any]]:
    """Takes callable objects that Keras cannot serialize out of a layer, for a while.

    Yields:
        `{attribute: object}`, without the underscore before the attribute's name.
    """
    attributes = vars(layer)
    found = {
        key: value
        for key, value in attributes.items()
        if _is_users(value)
        and not inspect.isroutine(value)
        and not hasattr(value, "get_config")
    }
    attributes.update(dict.fromkeys(found, keras.activations.linear))
    try:
        yield {key.removeprefix("_"): value for key, value in found.items()}
    finally:
        attributes.update(found)


def _clone(layer: keras.Operation, changes: dict[str, Any]) -> Any:
    kind = type(layer)
    if not isinstance(layer, keras.layers.Layer):
        return _clone_operation(layer, changes)
    if kind.__init__ is keras.layers.Lambda.__init__:
        return kind(**{**keras_private.lambda_arguments(layer), **changes})
    if kind is keras.layers.TFSMLayer:  # its `from_config` distrusts all files
        return kind(**{**layer.get_config(), **changes})
    try:
        return kind.from_config({**config_of(layer), **changes})
    except Exception:
        return _clone_of_parts(layer, changes)


def _clone_operation(operation, changes):
    try:
        return type(operation).from_config({**operation.get_config(), **changes})
    except Exception:
        if changes:
            raise
        # It has no state, so that its attributes can be shared.
        return keras_private.copy_operation(operation)


def _clone_of_parts(layer: keras.layers.Layer, changes: dict[str, Any]) -> Any:
    """Clones a layer whose sublayers are cloned by `clone_layer`.

    Arguments of every layer that its constructor does not take are set afterwards.
    """
    kind = type(layer)
    config = {**config_of(layer), **changes}
    own = getattr(kind.from_config, "__func__", None)
    left_out = {}
    if own is keras.Operation.from_config.__func__ and not _takes_any(kind.__init__):
        known = inspect.signature(kind.__init__).parameters
        left_out = {k: config.pop(k) for k in _COMMON if k in config and k not in known}
    parts: dict[Any, Any] = {}
    for part in keras_private.flatten_layers(layer)[1:]:
        key = type(part).__name__, part.name
        parts[key] = None if key in parts else part  # None where it is ambiguous
    with keras.saving.custom_object_scope({_STAND_IN: _stand_in(parts)}):
        new = kind.from_config(_with_stand_ins(config, parts))
    if "trainable" in left_out:
        new.trainable = left_out["trainable"]
    if "dtype" in left_out:
        new.dtype_policy = keras.dtype_policies.get(left_out["dtype"])
    return new


def _takes_any(function: Callable) -> bool:
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def _with_stand_ins(value, parts):
    """A configuration in which stand-ins take the place of the `parts` in it."""
    if isinstance(value, (list, tuple)):
        return type(value)(_with_stand_ins(item, parts) for item in value)
    if not isinstance(value, dict):
        return value
    inner = value.get("config")
    if isinstance(inner, dict) and "class_name" in value:
        key = value["class_name"], inner.get("name")
        part = parts.get(key)
        if part is not None and not isinstance(part, keras.Model):
            kind = {"class_name": _STAND_IN, "registered_name": _STAND_IN}
            return {**value, **kind, "module": None, "config": {"key": list(key)}}
    return {key: _with_stand_ins(item, parts) for key, item in value.items()}


def _stand_in(parts):
    """A class whose `from_config` clones one of the live `parts`."""

    class StandIn:
        @staticmethod
        def from_config(config: dict[str, Any]) -> keras.layers.Layer:
            return clone_layer(parts[tuple(config["key"])])

    return StandIn


def _copy_assets(old, new):
    """Copies vocabularies, which are neither weights nor in the configuration."""
    if hasattr(old, "save_assets") and hasattr(new, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
