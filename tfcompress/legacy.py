"""Models of Keras 2 as models of Keras 3."""

import inspect
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import keras
from keras import ops

from tfcompress.types import Tensor

# Arguments of Keras 2 that Keras 3 lacks, with the values that change nothing. None
# stands for all values.
_DROPPED: dict[str, tuple[Any, ...] | None] = {
    "groups": (1, None),  # of depthwise, separable and transposed convolutions
    "time_major": (False,),
    "implementation": None,
    "input_length": None,
    "kernel_initializer": None,  # of separable convolutions, which do not use them
    "kernel_regularizer": (None,),
    "kernel_constraint": (None,),
    "softmax_robust_masking": (False,),
    "query_shape": None,
    "key_shape": None,
    "value_shape": None,
    "fused": None,
    "renorm": (False,),
    "renorm_clipping": None,
    "renorm_momentum": None,
    "virtual_batch_size": (None,),
    "adjustment": (None,),
}
_RENAMED = {"alpha": "negative_slope"}
# Arguments of Keras's base class, and those that its loader reads.
_OF_EVERY_LAYER = {
    *("name", "trainable", "dtype", "autocast", "activity_regularizer"),
    *("input_shape", "batch_shape", "batch_input_shape", "input_dtype"),
}
_MODELS = ("Functional", "Model", "Sequential")


@keras.saving.register_keras_serializable(package="tfcompress")
def keras2_hard_sigmoid(x: Tensor) -> Tensor:
    """Returns min(max(0.2 x + 0.5, 0), 1), the `hard_sigmoid` of Keras 2.

    That of Keras 3 is min(max(x / 6 + 0.5, 0), 1).
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def load_legacy(
    path: str | bytes | os.PathLike, custom_objects: Mapping[str, Any] | None = None
) -> keras.Model:
    """Returns a model that Keras 2 saved as an `.h5` file.

    `keras.models.load_model` does the work on a copy of the file. In its configuration
    arguments that Keras 3 does not know and that have no effect are dropped, and calls
    of nested models are numbered as in Keras 3. A file of Keras 3 is loaded as it is.

    Args:
        path: path of a whole model, as `model.save("model.h5")` of `tf.keras`,
            `tf_keras` or Keras 2 wrote it.
        custom_objects: dict of str to class or function, as in
            `keras.models.load_model`.

    Returns:
        A Functional or Sequential model of Keras 3, not compiled.

    Raises:
        TypeError: if `path` is no path.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no whole model in an `.h5` file; if a layer has no
            counterpart in Keras 3, or an argument that Keras 3 lacks and that has an
            effect; or if weights are left over or missing.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"The path of an `.h5` file is expected. Received: {path!r}.")
    path = pathlib.Path(os.fsdecode(path))
    config = _read_config(path)
    if config is None:
        return keras.models.load_model(path, custom_objects, compile=False)
    objects = {"keras2_hard_sigmoid": keras2_hard_sigmoid, **(custom_objects or {})}
    _check_classes(config, objects)
    for layer in _layer_configs(config):
        if layer["class_name"] in _MODELS:
            _number_calls(layer["config"])
        elif layer["class_name"] not in objects:
            _translate(layer)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "model.h5"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
            count = _count_values(file["model_weights"])
        model = keras.models.load_model(copy, objects, compile=False)
    if model.count_params() != count:
        raise ValueError(
            f"A model of {count:,} weights is expected, as '{path}' has them. "
            f"Received: {model.count_params():,} weights of '{model.name}'. Build the "
            "model in Keras 3, and set its weights layer by layer."
        )
    return model


def _read_config(path):
    """The configuration of the model in a file, a dict; None if Keras 3 wrote it."""
    if not path.exists():
        raise FileNotFoundError(f"An `.h5` file is expected. Received: '{path}'.")
    hint = (
        'Load it in tf_keras, and save it by model.save("model.h5"). Keras 3 reads its '
        "own files by keras.models.load_model."
    )
    if path.is_dir() or not h5py.is_hdf5(path):
        kind = "which is none"
        if (path / "saved_model.pb").exists():
            kind = "a SavedModel: a graph of operations, without layers"
        raise ValueError(
            f"A whole model in an `.h5` file is expected. Received: '{path}', {kind}. "
            f"{hint}"
        )
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None or "model_weights" not in file:
            raise ValueError(
                "An `.h5` file with a model's configuration and weights is expected. "
                f"Received: '{path}' with its weights alone. Build the model in Keras "
                f"3 and call model.load_weights. Or build it in tf_keras. {hint}"
            )
        text = config.decode() if isinstance(config, bytes) else config
        if str(file.attrs.get("keras_version", "2")).startswith("3"):
            return None
    return json.loads(text)


def _layer_configs(config: Any) -> Iterator[dict[str, Any]]:
    """The configurations of all layers, those within models and wrappers included."""
    if isinstance(config, list):
        for part in config:
            yield from _layer_configs(part)
    elif isinstance(config, dict):
        if isinstance(config.get("config"), dict) and _is_layer(config):
            yield config
        for part in config.values():
            yield from _layer_configs(part)


def _is_layer(config):
    name = config.get("class_name")
    return isinstance(name, str) and (
        name in _MODELS or _layer_class(config) is not None or "inbound_nodes" in config
    )


def _layer_class(config):
    found = getattr(keras.layers, config["class_name"], None)
    return found if inspect.isclass(found) else None


def _check_classes(config, objects):
    """Raises ValueError if a layer has no counterpart in Keras 3."""
    layers = list(_layer_configs(config))
    layers += _members_of_sequential(config)
    unknown = {
        layer["class_name"]: layer["config"].get("name", "?")
        for layer in layers
        if _layer_class(layer) is None
        and layer["class_name"] not in (*_MODELS, *objects)
        and keras.saving.get_registered_object(layer["class_name"]) is None
    }
    if not unknown:
        return
    named = ", ".join(f"{cls} ('{name}')" for cls, name in unknown.items())
    is_operation = any("OpLambda" in cls for cls in unknown)
    hint = (
        "They are operations of TensorFlow between layers: replace them by layers in "
        "Keras 2, copy the weights, and save the model again."
        if is_operation
        else "Pass your own classes as custom_objects={NAME: CLASS}."
    )
    raise ValueError(f"Layers that Keras 3 has are expected. Received: {named}. {hint}")


def _members_of_sequential(config):
    """Layers of Sequential models, whose configurations name no inbound nodes."""
    if isinstance(config, list):
        return [x for part in config for x in _members_of_sequential(part)]
    if not isinstance(config, dict):
        return []
    found = []
    if config.get("class_name") == "Sequential":
        inner = config["config"]
        found = list(inner["layers"] if isinstance(inner, dict) else inner)
    return found + [x for part in config.values() for x in _members_of_sequential(part)]


def _number_calls(config):
    """Numbers the calls of nested models as Keras 3 does, from 0 in place of 1.

    Keras 2 counts the making of a model with inputs as its first call. The loader of
    Keras 3 knows of that for outputs of Functional models alone.
    """
    nested = {
        layer["config"].get("name"): layer["class_name"]
        for layer in config.get("layers", [])
        if layer["class_name"] in _MODELS and _begins_with_input(layer["config"])
    }
    for layer in config.get("layers", []):
        for node in layer.get("inbound_nodes", []):
            for reference in node:
                _check_keywords(layer, reference)
                reference[1] -= reference[0] in nested
    for reference in _references(config.get("output_layers", [])):
        reference[1] -= nested.get(reference[0]) == "Sequential"


def _begins_with_input(config):
    return config.get("layers", [{}])[0].get("class_name") == "InputLayer"


def _references(structure):
    """The [name, call, output] in a structure of outputs."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    if len(structure) == 3 and isinstance(structure[0], str):
        return [structure]
    return [x for part in structure for x in _references(part)]


def _check_keywords(layer, reference):
    """Raises ValueError if a layer is called with a tensor as keyword argument."""
    for name, value in (reference[3] if len(reference) > 3 else {}).items():
        if isinstance(value, list) and value and isinstance(value[0], str):
            raise ValueError(
                "Layers that are called on positional tensors are expected. Received: "
                f"'{layer['config'].get('name')}' of type {layer['class_name']}, "
                f"called with `{name}`, which Keras 3 does not read from an `.h5` "
                "file. Build the model in Keras 3, and load its weights by "
                "model.load_weights."
            )


def _translate(layer):
    """Changes the configuration of a layer to one that Keras 3 takes."""
    config, cls = layer["config"], _layer_class(layer)
    if cls is None:
        return
    axis = config.get("axis")
    if isinstance(axis, list):
        if len(axis) > 1:  # the loader of Keras would take the default
            _refuse(layer, "axis", "a single axis")
        config["axis"] = axis[0]
    if isinstance(config.get("dtype"), dict):  # a policy
        config["dtype"] = config["dtype"]["config"].get("name", "float32")
    for name in ("activation", "recurrent_activation"):
        value = config.get(name)
        if isinstance(value, dict) and isinstance(value.get("config"), str):
            value = value["config"]
        if value == "hard_sigmoid":
            config[name] = "keras2_hard_sigmoid"
    known = _arguments(cls)
    for name in [name for name in config if name not in known]:
        value = config.pop(name)
        neutral = _DROPPED.get(name, ())
        if _RENAMED.get(name) in known:
            config[_RENAMED[name]] = float(value)
        elif neutral is not None and value not in neutral:
            config[name] = value
            wanted = " or ".join(map(repr, neutral)) or "none, as Keras 3 has no such"
            _refuse(layer, name, wanted)


def _arguments(cls):
    """Names of the arguments that a class of layers takes."""
    names = set(_OF_EVERY_LAYER)
    for base in cls.__mro__:
        if base is keras.Layer:
            break
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names


def _refuse(layer, name, expected):
    config = layer["config"]
    raise ValueError(
        f"Arguments that Keras 3 has are expected: `{name}` is to be {expected}. "
        f"Received: {name}={config[name]!r} of '{config.get('name')}', of type "
        f"{layer['class_name']}. Build this layer from others in Keras 2, copy its "
        "weights, and save the model again."
    )


def _count_values(group):
    """Number of values in all arrays of a group of an HDF5 file."""
    return sum(
        item.size if isinstance(item, h5py.Dataset) else _count_values(item)
        for item in group.values()
    )
