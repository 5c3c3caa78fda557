"""Names and order of a model's inputs and outputs."""

import keras


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

    Names are the keys of a dict of inputs, or those given to `keras.Input`. Their order
    is that of `keras.tree.flatten`.
    """
    return [
        _key(path) or tensor.name
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


def _key(path):
    return path[0] if len(path) == 1 and isinstance(path[0], str) else None
