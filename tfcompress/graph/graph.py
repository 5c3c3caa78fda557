"""A model's graph as a flat list of calls, nested models included."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from tfcompress.compat import keras_private

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        name: str. Name of the operation; "outer/inner" inside nested models.
        operation: `keras.layers.Layer` or another `keras.Operation`. It is called.
        arguments: `(args, kwargs)`. Arguments of the call.
        inputs: list of `KerasTensor`. Tensors among the arguments, in their order.
        outputs: list of `KerasTensor`. Results; they belong to this `Graph` alone.
        number: int. Number of the call among those of the operation in its model.
    """

    name: str
    operation: keras.Operation
    arguments: tuple[tuple, dict[str, Any]]
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    number: int


class Graph:
    """Calls of a Functional or Sequential model's layers and operations.

    Shapes and dtypes are traced, and no values. The model is left untouched. Nested
    models are walked through with the tensors that they are called on. Producers and
    consumers are therefore found across their borders. A nested model that is called
    twice contributes its layers' calls twice.

    Attributes:
        calls: list of `Call`. All calls but those of nested models, in running order.
        model_calls: list of `Call`. Calls of the nested models themselves.
        inputs: list of `KerasTensor`. The model's inputs.
        outputs: list of `KerasTensor`. The model's outputs.

    Args:
        model: built Functional or Sequential `keras.Model`.
        inputs: list of `KerasTensor` to trace instead of the model's inputs, or None.

    Raises:
        ValueError: if the model is subclassed or not built.
    """

    def __init__(
        self, model: keras.Model, inputs: list[keras.KerasTensor] | None = None
    ) -> None:
        check_has_graph(model)
        self.calls: list[Call] = []
        self.model_calls: list[Call] = []
        self.inputs: list[keras.KerasTensor] = (
            model.inputs if inputs is None else inputs
        )
        self.outputs: list[keras.KerasTensor] = keras.tree.flatten(
            self._walk(model, self.inputs, "")
        )
        self._output_ids = {id(tensor) for tensor in self.outputs}
        self._derived: dict[Callable[[Graph], Any], Any] = {}
        self._calls_of: dict[int, list[Call]] = {}
        self._consumers: dict[int, list[Call]] = {}
        for call in self.calls:
            self._calls_of.setdefault(id(call.operation), []).append(call)
            for key in {id(tensor) for tensor in call.inputs}:
                self._consumers.setdefault(key, []).append(call)

    def _walk(self, model, inputs, prefix):
        counts: collections.Counter[int] = collections.Counter()

        def recorder(operation):
            number = counts[id(operation)]
            counts[id(operation)] += 1

            def call(*args, **kwargs):
                name = prefix + operation.name
                if is_model(operation):
                    outputs = self._walk(operation, args[0], name + "/")
                    calls = self.model_calls
                else:
                    outputs = operation.compute_output_spec(*args, **kwargs)
                    calls = self.calls
                tensors = _tensors((args, kwargs)), _tensors(outputs)
                calls.append(Call(name, operation, (args, kwargs), *tensors, number))
                return outputs

            return call

        if isinstance(model, keras.Sequential):
            (x,) = keras.tree.flatten(inputs)
            for layer in model.layers:
                x = recorder(layer)(x)
            return x
        return keras_private.run_through_graph(model, inputs, recorder)

    def layers(self) -> dict[str, keras.layers.Layer]:
        """`{name: layer}` of all called layers; a shared one by its first name."""
        first_names: dict[int, tuple[str, keras.layers.Layer]] = {}
        for call in self.calls:
            if isinstance(call.operation, keras.layers.Layer):
                first_names.setdefault(id(call.operation), (call.name, call.operation))
        return dict(first_names.values())

    def derived(self, make: Callable[["Graph"], Result]) -> Result:
        """Returns `make(graph)`, which is called once per graph, such as `Channels`."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return self._derived[make]

    def calls_of(self, operation: keras.Operation) -> list[Call]:
        """The calls of one layer or operation."""
        return self._calls_of.get(id(operation), [])

    def consumers(self, tensor: keras.KerasTensor) -> list[Call]:
        """The calls that read a tensor."""
        return self._consumers.get(id(tensor), [])

    def used(self) -> set[int]:
        """Returns the ids of the operations that an output of the model depends on.

        A nested model may have outputs that nothing reads.
        """
        needed, used = set(self._output_ids), set()
        for call in reversed(self.calls):
            if any(id(tensor) in needed for tensor in call.outputs):
                used.add(id(call.operation))
                needed.update(id(tensor) for tensor in call.inputs)
        return used

    def is_output(self, tensor: keras.KerasTensor) -> bool:
        """Whether the model returns a tensor."""
        return id(tensor) in self._output_ids


def is_model(operation: Any) -> bool:
    """Whether an operation is a nested Functional or Sequential model."""
    return isinstance(operation, (keras.Function, keras.Sequential))


def own_classes(cls: type) -> list[type]:
    """Classes among a model's bases that are neither Keras's nor this library's."""
    known = {"keras", "tensorflow", "tfcompress", "builtins"}
    return [x for x in cls.__mro__ if x.__module__.split(".")[0] not in known]


def check_has_graph(model: Any) -> None:
    """Raises ValueError unless `model` is a built Functional or Sequential model."""
    if isinstance(model, keras.Sequential):
        if model.built and model.inputs:
            return
        hint = "Start it with a `keras.Input`, or call `build(input_shape)`."
    elif isinstance(model, keras.Function):
        return
    else:
        hint = (
            "A subclassed model has no graph to read: wrap its layers in "
            "`keras.Model(inputs, outputs)`, with `outputs = model.call(inputs)`."
        )
    raise ValueError(
        "A built Functional or Sequential Keras 3 model is expected. Received: "
        f"{getattr(model, 'name', model)!r} of type {type(model).__name__}. {hint}"
    )


def _tensors(structure):
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if keras.utils.is_keras_tensor(leaf)]
