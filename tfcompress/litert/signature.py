"""What a model takes and returns, in one order and under one set of names."""

import keras


def functional(model):
    """The same layers as a Functional model: a Sequential one lacks `input`."""
    if not isinstance(model, keras.Sequential):
        return model
    (inputs,), (outputs,) = model.inputs, model.outputs
    return keras.Model(inputs, outputs, name=model.name)


def input_names(model):
    """Names of a Functional model's inputs, in the order of `keras.tree.flatten`.

    A dict's keys; else the names given to `keras.Input`.
    """
    return [
        _key(path) or tensor.name
        for path, tensor in keras.tree.flatten_with_path(model.input)
    ]


def output_names(model):
    """The same of its outputs: a dict's keys, else output_0, output_1, ..."""
    return [
        _key(path) or f"output_{i}"
        for i, (path, _) in enumerate(keras.tree.flatten_with_path(model.output))
    ]


def _key(path):
    return path[0] if len(path) == 1 and isinstance(path[0], str) else None
