"""Check for layers that share variables, which copies of them would no longer do."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras

from tfcompress.compat import keras_private
from tfcompress.graph.graph import Call, Graph

_ADVICE = (
    "Each layer is copied, and the copies would no longer share it. Call one and the "
    "same layer in both places, as keras.layers.ReversibleEmbedding can be, or give "
    "the second layer weights of its own."
)


def check_not_tied(graph: Graph) -> None:
    """Checks that no variable is used by two layers of a graph.

    A layer that is called twice may be. Variables are found in the weights of layers,
    in attributes, in the closures of functions, and among the arguments of operations.

    Args:
        graph: `Graph` of the user's model.

    Raises:
        ValueError: if one is; the error names the layers and the variable.
    """
    owners: dict[int, tuple[str, keras.Operation]] = {}
    for name, layer in graph.layers().items():
        for variable in layer.weights:
            first, owner = owners.setdefault(id(variable), (name, layer))
            if owner is not layer:
                _refuse(variable, first, name)
    operations = {id(call.operation): call for call in graph.calls}
    for call in operations.values():
        for variable in _used(call):
            if id(variable) in owners and owners[id(variable)][1] is not call.operation:
                _refuse(variable, owners[id(variable)][0], call.name)


def _refuse(variable, first, second):
    raise ValueError(
        "Layers with variables of their own are expected. Received: "
        f"'{variable.path}', which both '{first}' and '{second}' use. {_ADVICE}"
    )


def _used(call: Call) -> Iterator[Any]:
    """Variables that an operation uses and Keras may not know of."""
    yield from _variables(keras.tree.flatten(call.arguments))
    parts = [call.operation]
    if isinstance(call.operation, keras.layers.Layer):
        parts = keras_private.flatten_layers(call.operation)
    for part in parts:
        values = list(vars(part).values())
        functions = [x for x in values if inspect.isfunction(x)]
        if not type(part).__module__.startswith(("keras.", "tfcompress.")):
            functions.append(inspect.unwrap(type(part).call))
        yield from _variables(_members(values))
        for function in filter(inspect.isfunction, functions):
            names = inspect.getclosurevars(function)
            held = [*names.nonlocals.values(), *names.globals.values()]
            yield from _variables(_members(held))
            for layer in held:
                if isinstance(layer, keras.layers.Layer):
                    yield from layer.weights


def _members(values):
    """Values, and those in lists, tuples and dicts among them."""
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _variables(values):
    return (x for x in values if isinstance(x, keras.Variable))
