"""A model's graph as a flat list of calls, nested models included."""

import dataclasses

import keras

from tfcompress.compat import keras_private


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        name: the operation's name; inside nested models "outer/inner".
        operation: the `keras.Layer` or `keras.Operation` that is called.
        arguments: `(args, kwargs)` of the call.
        inputs: list of `KerasTensor`, in the order of the arguments.
        outputs: list of `KerasTensor`; they belong to this trace alone.
    """

    name: str
    operation: keras.Operation
    arguments: tuple
    inputs: list
    outputs: list


class Graph:
    """Every call of a Functional or Sequential model, in running order.

    Nothing is computed and the model is not touched. Nested models are walked
    through with the tensors they are called on, so that a layer's producers and
    consumers are found across their borders; a nested model that is called
    twice contributes its layers' calls twice.

    Attributes:
        calls: list of `Call`.
        model_calls: list of `Call`, those of the nested models themselves.
        inputs: the model's input `KerasTensor`s.
        outputs: the model's output `KerasTensor`s.

    Args:
        model: a built Functional or Sequential `keras.Model`.

    Raises:
        ValueError: if the model is subclassed or not built.
    """

    def __init__(self, model):
        check_has_graph(model)
        self.calls = []
        self.model_calls = []
        self.inputs = model.inputs
        self.outputs = keras.tree.flatten(self._walk(model, model.inputs, ""))

    def _walk(self, model, inputs, prefix):
        def recorder(operation):
            def call(*args, **kwargs):
                name = prefix + operation.name
                if is_model(operation):
                    outputs = self._walk(operation, args[0], name + "/")
                    calls = self.model_calls
                else:
                    outputs = operation.compute_output_spec(*args, **kwargs)
                    calls = self.calls
                tensors = _tensors((args, kwargs)), _tensors(outputs)
                calls.append(Call(name, operation, (args, kwargs), *tensors))
                return outputs

            return call

        if isinstance(model, keras.Sequential):
            (x,) = keras.tree.flatten(inputs)
            for layer in model.layers:
                x = recorder(layer)(x)
            return x
        return keras_private.run_through_graph(model, inputs, recorder)

    def layers(self):
        """`{name: layer}` of every layer that is called; shared ones once."""
        first_names = {}
        for call in self.calls:
            if isinstance(call.operation, keras.layers.Layer):
                first_names.setdefault(id(call.operation), (call.name, call.operation))
        return dict(first_names.values())

    def calls_of(self, operation):
        """The calls of one layer or operation."""
        return [call for call in self.calls if call.operation is operation]

    def consumers(self, tensor):
        """The calls that read a tensor."""
        return [
            call
            for call in self.calls
            if any(operand is tensor for operand in call.inputs)
        ]

    def is_output(self, tensor):
        """Whether the model returns a tensor."""
        return any(output is tensor for output in self.outputs)


def is_model(operation):
    """Whether an operation is a nested Functional or Sequential model."""
    return isinstance(operation, (keras.Function, keras.Sequential))


def check_has_graph(model):
    """Raises ValueError unless `model` is a built Functional or Sequential model."""
    if isinstance(model, keras.Sequential):
        if model.built and model.inputs:
            return
        hint = "Start it with a `keras.Input`, or call `build(input_shape)`."
    elif isinstance(model, keras.Function):
        return
    else:
        hint = (
            "A subclassed model has no graph to read: wrap what it computes in "
            "`keras.Model(inputs, outputs)`."
        )
    raise ValueError(
        "A built Functional or Sequential Keras 3 model is expected. Received: "
        f"{getattr(model, 'name', model)!r} of type {type(model).__name__}. {hint}"
    )


def _tensors(structure):
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if keras.utils.is_keras_tensor(leaf)]
