"""Models with a `call` of their own, traced into Functional models."""

from typing import Any

import keras

from tfcompress.graph.graph import Graph
from tfcompress.graph.parts import nested
from tfcompress.graph.parts.examples import NoPartsError
from tfcompress.graph.parts.subclass import overridden

# Methods of a model that its graph, its layers and their weights replace.
_REPLACED = (
    *("call", "build", "compute_mask", "compute_output_shape", "compute_output_spec"),
    *("summary", "supports_masking"),
)
_TWO_LINES = (
    "`inputs = keras.Input(...)` and `model = keras.Model(inputs, model.call(inputs))`"
)


def with_graph(model: Any) -> Any:
    """Returns a Functional model of the layers of a subclassed model.

    Its `call` is traced on symbolic inputs of the shapes that it was built with. The
    batch is free, and inputs are float32, or int32 where only embeddings read them.

    Args:
        model: `keras.Model`.

    Returns:
        A Functional `keras.Model` with the same name and the same layers, which are not
        copied. A model that has a graph, and an object of another type, is returned as
        it is.

    Raises:
        ValueError: if the model is not built, if its class overrides methods that train
            or measure it, or if its layers alone do not compute the same.
    """
    if not isinstance(model, keras.Model) or isinstance(
        model, (keras.Function, keras.Sequential)
    ):
        return model
    methods = [x for x in overridden(type(model), keras.Model) if x not in _REPLACED]
    if methods:
        raise ValueError(
            "A subclassed model that overrides no more than `call` is expected. "
            f"Received: '{model.name}' of {type(model).__name__}, which overrides "
            f"{', '.join(methods)}. Derive a class with these methods from keras.Model "
            "whose constructor takes inputs and outputs, and pass it the graph "
            f"`model.call(inputs)`; or train without them, by {_TWO_LINES}."
        )
    try:
        return _traced(model)
    except NoPartsError as error:
        raise ValueError(
            "A model whose `call` can be traced into a graph is expected. Received: "
            f"'{model.name}' of {type(model).__name__}, which {error}. Let its `call` "
            "compute by layers and keras.ops, which get `training` as an argument, or "
            f"make it a graph yourself, by {_TWO_LINES}."
        ) from error


def _traced(model):
    inputs = _inputs(model, lambda place: "float32")
    traced = nested.trace(model, (inputs,), {}, as_given=True)
    calls = Graph(traced)
    only_embedded = [
        all(isinstance(x.operation, keras.layers.Embedding) for x in readers)
        for readers in map(calls.consumers, traced.inputs)
    ]
    if not any(only_embedded):
        return traced
    inputs = _inputs(model, lambda i: "int32" if only_embedded[i] else "float32")
    return nested.trace(model, (inputs,), {}, as_given=True)


def _inputs(model, dtype_of):
    """Symbolic inputs of a model in the structure that it was built with.

    Args:
        model: subclassed model.
        dtype_of: function from the place of an input to its dtype.
    """
    if not (model.built and model.weights):
        raise NoPartsError("is not built (a call on data builds it)")
    shapes = (keras.Model.get_build_config(model) or {}).get("input_shape")
    if shapes is None:
        raise NoPartsError("was not called on one argument, whose shapes are known")
    place = iter(range(len(_leaves(shapes))))

    def made(structure):
        if _is_shape(structure):
            return keras.Input(structure[1:], dtype=dtype_of(next(place)))
        if isinstance(structure, dict):  # in the order of `keras.tree.flatten`
            return {key: made(structure[key]) for key in sorted(structure)}
        return [made(x) for x in structure]

    return made(shapes)


def _leaves(structure):
    if _is_shape(structure):
        return [structure]
    parts = structure.values() if isinstance(structure, dict) else structure
    return [leaf for part in parts for leaf in _leaves(part)]


def _is_shape(structure):
    return isinstance(structure, (list, tuple)) and all(
        size is None or isinstance(size, int) for size in structure
    )
