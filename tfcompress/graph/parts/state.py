"""State and side effects of a layer apart from its sublayers, found by tracing."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.graph.graph import own_classes
from tfcompress.graph.parts.examples import NoPartsError

# State of a generator of random numbers. One that a `call` does not use is no loss.
_SEED = "seed_generator_state"
# Attributes by which TensorFlow keeps lists of variables that Keras knows.
_OF_TENSORFLOW = "_self_"
# Attributes of an operation that say nothing about what it computes.
_NAMES = ("name", "_inbound_nodes", "_outbound_nodes", "_auto_config", "_lock")


class _NoState(keras.StatelessScope):
    """Scope in which reading or changing a variable is an error.

    Symbolic calls of sublayers open scopes of their own within it.
    """

    def get_current_value(self, variable: keras.Variable) -> None:
        raise NoPartsError(f"reads the variable '{variable.path}' in its `call`")

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        raise NoPartsError(f"changes the variable '{update[0].path}' in its `call`")


def variables_of(layer: keras.layers.Layer) -> list[Any]:
    """Returns the variables of a layer and its metrics.

    A model's metrics are those of `compile`.
    """
    is_model = isinstance(layer, keras.Model)
    return [*layer.variables, *([] if is_model else layer.metrics_variables)]


def check_own_state(layer: keras.layers.Layer) -> None:
    """Checks that a layer computes in `call` alone, and with variables of Keras.

    Raises:
        NoPartsError: if it has a `__call__` of its own or other variables.
    """
    if any("__call__" in vars(cls) for cls in own_classes(type(layer))):
        raise NoPartsError("has a `__call__` of its own")
    known = {id(variable) for variable in layer.variables}
    for name, value in vars(layer).items():
        leaves = _leaves(value)
        if not name.startswith(_OF_TENSORFLOW) and any(
            _is_variable(leaf) and id(leaf) not in known for leaf in leaves
        ):
            raise NoPartsError(f"has a variable `{name}` that Keras does not track")


@contextlib.contextmanager
def only_parts_have_state(
    layer: keras.layers.Layer,
) -> Iterator[keras.StatelessScope]:
    """Runs the `call` of a layer, whose sublayers alone may have state.

    Returns:
        Context manager of the scope in which it runs.

    Raises:
        NoPartsError: if the layer itself reads or changes a variable, as random
            numbers do, adds a loss, or changes one of its attributes.
    """

    def add_loss(*args: Any, **kwargs: Any) -> None:
        raise NoPartsError("adds a loss in its `call`")

    attributes = vars(layer)
    before = dict(attributes)
    leaves = {name: _leaves(value) for name, value in before.items()}
    attributes["add_loss"] = add_loss
    try:
        with _NoState() as scope:
            yield scope
    finally:
        after = dict(attributes, add_loss=before.get("add_loss"))
        after = {name: value for name, value in after.items() if value is not None}
        attributes.clear()
        attributes.update(before)
    for name in after.keys() | before.keys():
        if not _same(leaves.get(name), after.get(name)):
            raise NoPartsError(f"changes its attribute `{name}` in its `call`")


def _same(leaves, value):
    """Whether a value has the same leaves as before, or equal numbers and texts."""
    if leaves is None:
        return value is None
    new = _leaves(value)
    return len(new) == len(leaves) and all(
        a is b or (isinstance(a, (int, float, str)) and a == b)
        for a, b in zip(leaves, new, strict=True)
    )


def operations(function: Any, training: bool) -> list[Any]:
    """Returns descriptions of a function's operations, which can be compared.

    Args:
        function: `keras.Function`.
        training: bool. Value of `training` that it was traced with. The description of
            a call with that value is the one of a call without any.

    Raises:
        NoPartsError: if an operation reads a variable that is not a layer's own, or
            Keras gets the shape of its output wrong.
    """
    result = []
    numbers = {id(tensor): i for i, tensor in enumerate(function.inputs)}
    alive = list(function.inputs)

    def described(leaf):
        if keras.utils.is_keras_tensor(leaf):
            return f"tensor {numbers[id(leaf)]}"
        if _is_variable(leaf):
            raise NoPartsError(
                f"computes with the variable '{getattr(leaf, 'path', leaf.name)}' in "
                "its `call`"
            )
        if hasattr(leaf, "__array__") and not isinstance(leaf, np.generic):
            array = ops.convert_to_numpy(leaf)
            return str(array.dtype), array.shape, array.tobytes()
        return repr(leaf)

    def recorder(operation):
        def call(*args, **kwargs):
            _check_shape_is_known(operation, args)
            if kwargs.get("training") in (None, training):
                kwargs.pop("training", None)
            arguments = keras.tree.flatten((args, sorted(kwargs.items())))
            result.append((_identity(operation), [described(x) for x in arguments]))
            outputs = operation.compute_output_spec(*args, **kwargs)
            for tensor in keras.tree.flatten(outputs):
                numbers[id(tensor)] = len(alive)
                alive.append(tensor)
            return outputs

        return call

    outputs = keras_private.run_through_graph(function, function.inputs, recorder)
    return [*result, [described(x) for x in keras.tree.flatten(outputs)]]


def _check_shape_is_known(operation, args):
    """Raises NoPartsError for an operation of which Keras gets the shape wrong."""
    if type(operation).__name__ == "DotProductAttention":
        query, _, value = args[:3]
        if query.shape[-1] != value.shape[-1]:
            raise NoPartsError("has values and queries of different sizes")


def _identity(operation):
    """The description of an operation: layers with state are themselves."""
    if isinstance(operation, keras.layers.Layer):
        if operation.variables:
            return id(operation)
        try:
            config = {**operation.get_config(), "name": None}
        except Exception:
            return id(operation)
        return type(operation), repr(config)
    attributes = sorted(vars(operation).items())
    return type(operation), repr([x for x in attributes if x[0] not in _NAMES])


def check_all_used(layer: keras.layers.Layer, model: keras.Model) -> None:
    """Checks that a model of sublayers has all variables of their layer.

    Raises:
        NoPartsError: if it has not.
    """
    inside = {id(variable) for variable in model.variables}
    unused = [x for x in variables_of(layer) if id(x) not in inside and x.name != _SEED]
    if unused:
        raise NoPartsError(
            f"has variables that its `call` does not use, such as '{unused[0].path}'"
        )


def _leaves(value):
    """Objects in lists and dicts. Their keys need no order, as in `keras.tree`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple, set)):
        return [value]
    return [leaf for part in value for leaf in _leaves(part)]


def _is_variable(leaf):
    return hasattr(leaf, "assign") and hasattr(leaf, "dtype")
