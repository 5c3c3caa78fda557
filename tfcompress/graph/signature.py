"""Names and order of a model's inputs and outputs."""

import keras

from tfcompress.compat import keras_private


def functional(model: keras.Model) -> keras.Model:
    """Returns a Functional model of the same layers.

    A Sequential model lacks `input`. A Functional one is returned as it is.
    """
    if not isinstance(model, keras.Sequential):
        return model
    (inputs,), (outputs,) = model.inputs, model.outputs
    return keras.Model(inputs, outputs, name=model.name)


def input_names(model: keras.Model) -> list[str]:
    """Returns the names of a Functional model's inputs.

    Names are the keys of a dict of inputs, or those given to `keras.Input`, or those of
    their layers, which stay when a model is saved and loaded. Their order is that of
    `keras.tree.flatten`.
    """
    return [
        _key(path) or _name(tensor)
        for path, tensor in keras.tree.flatten_with_path(model.input)
    ]


def output_names(model: keras.Model) -> list[str]:
    """Returns the names of a Functional model's outputs.

    Names are the keys of a dict of outputs, or `output_0`, `output_1`, ... Their order
    is that of `keras.tree.flatten`.
    """
    return [
        _key(path) or f"output_{i}"
        for i, (path, _) in enumerate(keras.tree.flatten_with_path(model.output))
    ]


def _name(tensor):
    """Name of an input, or of its layer where Keras has numbered the tensor."""
    is_numbered = tensor.name.startswith("keras_tensor")
    return keras_private.maker_of(tensor).name if is_numbered else tensor.name


def _key(path):
    return path[0] if len(path) == 1 and isinstance(path[0], str) else None
