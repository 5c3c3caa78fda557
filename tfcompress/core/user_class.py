"""Students that keep the class of the user's model."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.core.student import Student
from tfcompress.graph.graph import Graph, own_classes

_FUNCTIONAL_ARGUMENTS = {"inputs", "outputs", "name", "trainable"}
# Entries that `get_config` of Keras returns for any Functional model, and of a student.
_OTHER_ENTRIES = {
    *("dtype", "layers", "input_layers", "output_layers", "scheme", "distillation"),
}
_PLAIN = "or pass keras.Model(model.inputs, model.outputs), a model of the plain class"


@dataclasses.dataclass(frozen=True)
class UserClass:
    """Class of a user's Functional model, and the arguments of its constructor.

    Attributes:
        cls: type. Subclass of `keras.Model`.
        config: dict. Serialized arguments of its constructor, without inputs, outputs
            and name.
    """

    cls: Any
    config: Mapping[str, Any]

    def make_student(self, inputs: Any, outputs: Any, name: str) -> Student:
        """Returns a student of both classes with a given graph.

        The methods of the user's class come before those of `Student`.

        Args:
            inputs, outputs: structures of `KerasTensor`.
            name: str. Name of the student.
        """
        _make_functional()
        student = self._make(student_class(self.cls), inputs, outputs, name)
        student.user_class = self
        return student

    def check(self, model: keras.Model) -> None:
        """Checks that the constructor makes a model of a given graph.

        Raises:
            ValueError: if it does not.
        """
        try:
            made = self._make(self.cls, model.input, model.output, model.name)
        except Exception as error:
            raise ValueError(_not_made(self.cls, str(error))) from error
        tensors = list(map(id, keras.tree.flatten(made.output)))
        if tensors != list(map(id, keras.tree.flatten(model.output))):
            raise ValueError(_not_made(self.cls, "it makes a graph of its own"))

    def _make(self, cls, inputs, outputs, name):
        decodes = overrides(self.cls, "from_config")
        config = dict(self.config)
        if not decodes:
            config = keras.saving.deserialize_keras_object(config)
        arguments = {**config, "inputs": inputs, "outputs": outputs}
        parameters = inspect.signature(self.cls.__init__).parameters.values()
        if any(x.name == "name" or x.kind is x.VAR_KEYWORD for x in parameters):
            arguments["name"] = name
        made = cls.from_config(arguments) if decodes else cls(**arguments)
        made.name = name
        return made

    def serialize(self) -> dict[str, Any]:
        """Returns the entry of the class in a student's configuration."""
        return {
            "registered_name": keras.saving.get_registered_name(self.cls),
            "class_name": self.cls.__name__,
            "config": dict(self.config),
        }


def user_class_of(model: keras.Model) -> UserClass | None:
    """Returns the class that a student of a model keeps.

    Args:
        model: Functional or Sequential model.

    Returns:
        A `UserClass`. None if the class is Keras's own, or if it overrides no method
        and its constructor takes no graph.

    Raises:
        ValueError: if it overrides methods, and no student can have them.
    """
    if isinstance(model, Student):
        return model.user_class
    if not own_classes(type(model)):
        return None
    try:
        user_class = _functional_user_class(model)
        user_class.check(model)
    except ValueError:
        if overridden(type(model)):
            raise
        return None  # a class that only builds its graph
    return user_class


def overridden(cls: type[keras.Model]) -> list[str]:
    """Returns the methods and properties of `keras.Model` that a class overrides."""
    names = {name for own in own_classes(cls) for name in vars(own)}
    names = {name for name in names if not name.startswith("__")}
    keras_names = set(dir(keras.Model)) - {"get_config", "from_config"}
    return sorted(names & keras_names)


def overrides(cls: type[keras.Model], name: str) -> bool:
    """Whether a class overrides a method of Keras's models.

    Args:
        cls: subclass of `keras.Model`.
        name: str. Name of the method.
    """
    return any(name in vars(own) for own in own_classes(cls))


def _functional_user_class(model):
    cls = type(model)
    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"A student is a Functional model. Received: '{model.name}' of the "
            f"keras.Sequential subclass {cls.__name__}, which overrides "
            f"{', '.join(overridden(cls))}. Derive the class from keras.Model and make "
            f"it as {cls.__name__}(inputs=..., outputs=...), {_PLAIN}."
        )
    config = model.get_config() if overrides(cls, "get_config") else {}
    config = {
        name: value
        for name, value in config.items()
        if name not in _FUNCTIONAL_ARGUMENTS | _OTHER_ENTRIES
    }
    missing = [
        parameter.name
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in {*_FUNCTIONAL_ARGUMENTS, *config}
    ]
    if missing:
        raise ValueError(
            f"The student is made by the constructor of {cls.__name__}, with inputs, "
            "outputs, name and the entries of `get_config`. Received: a constructor "
            f"that also takes {', '.join(missing)}. Return them in `get_config`, "
            f"{_PLAIN}."
        )
    return UserClass(cls, keras.saving.serialize_keras_object(config))


def _not_made(cls, reason):
    return (
        f"The student is made as {cls.__name__}(inputs=..., outputs=..., name=...), so "
        f"that it keeps the class and its {', '.join(overridden(cls))}. Received: a "
        f"constructor that does not make such a model: {reason}. Let it pass the three "
        f"on to `super().__init__`, {_PLAIN}."
    )


@functools.cache
def student_class(user_class: Any) -> type[Student]:
    """Returns the class of the students that keep a user's class.

    Args:
        user_class: subclass of `keras.Model`.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        if name is not None:
            kwargs["name"] = name
        super(cls, self).__init__(inputs=inputs, outputs=outputs, **kwargs)

    def get_config(self):
        # The user's has the arguments of its constructor, and perhaps no graph.
        config = Student.get_config(self)
        if overrides(user_class, "get_config"):
            own = keras.saving.serialize_keras_object(super(cls, self).get_config())
            arguments = config["user_class"]["config"]
            arguments.update({name: own[name] for name in arguments})
        return config

    namespace = {
        "__module__": Student.__module__,
        "__doc__": Student.__doc__,
        "__init__": __init__,
        "get_config": get_config,
    }
    cls = type(f"Student{user_class.__name__}", (user_class, Student), namespace)
    # Files name `Student`, which knows how to make the class: the name of this class
    # is registered first, and that of `Student` takes its place.
    register = keras.saving.register_keras_serializable("tfcompress", "Student")
    register(cls)
    register(Student)
    return cls


@functools.cache
def _make_functional() -> None:
    """Makes `Student` a subclass of Keras's Functional class.

    Keras changes its bases when the first student is made. A class that derives from
    `Student` before would have another order of methods.
    """
    inputs = keras.Input((1,), name="input")
    Student(inputs=inputs, outputs=inputs, name="student")


def load_user_class(
    entry: Mapping[str, Any], custom_objects: Mapping[str, Any] | None
) -> UserClass:
    """Returns the class of an entry that `UserClass.serialize` made.

    Args:
        entry: dict of the configuration.
        custom_objects: dict of str to class, or None. Classes that are not registered.

    Raises:
        ValueError: if the class is not known.
    """
    names = entry["registered_name"], entry["class_name"]
    for name in names:
        cls = (custom_objects or {}).get(name) or keras.saving.get_registered_object(
            name
        )
        if cls is not None:
            return UserClass(cls, entry["config"])
    raise ValueError(
        "The class of the model that was compressed is expected to be registered, with "
        f"keras.saving.register_keras_serializable. Received: a student of {names[0]}, "
        "which is not known. Import its module, or pass "
        f"custom_objects={{'{names[1]}': {names[1]}}} to load_model."
    )


def copy_state(model: keras.Model, student: Student) -> None:
    """Copies the state of a model that its graph does not have to its student.

    These are the attributes that were set after the constructor, and the variables
    that the constructor makes.

    Args:
        model: the user's model.
        student: its student, of the same class.

    Raises:
        ValueError: if the constructor made other variables than before.

    Warns:
        UserWarning: if an attribute holds an object that cannot be copied.
    """
    shapes = [[v.shape for v in _own_variables(x)] for x in (model, student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Variables of '{model.name}' that are in none of its graph's layers are "
            f"expected to be made by the constructor. Received shapes {shapes[0]}; the "
            f"constructor makes {shapes[1]}."
        )
    for old, new in zip(_own_variables(model), _own_variables(student), strict=True):
        new.assign(old)
    replaced, named = {}, _by_name(student)
    for name, layer in _by_name(model).items():
        replaced[id(layer)] = named.get(name)
    left_out = []
    for name, value in vars(model).items():
        if name.startswith("_") or hasattr(keras.Model, name) or name in _OF_KERAS:
            continue
        if replaced.get(id(value)) is not None:
            setattr(student, name, replaced[id(value)])
        elif _is_plain(value):
            setattr(student, name, value)
        elif not hasattr(student, name):
            left_out.append(name)
    if left_out:
        warnings.warn(
            f"The student lacks the attributes {', '.join(left_out)} of "
            f"'{model.name}', which are set outside of its constructor. Set them on "
            "the student too.",
            stacklevel=3,
        )


# Attributes that `keras.Model` sets for itself.
_OF_KERAS = {
    *("name", "built", "history", "optimizer", "loss", "compiled", "stop_training"),
    *("steps_per_execution", "auto_scale_loss", "train_function", "test_function"),
    *("predict_function", "supports_masking", "supports_jit", "autocast"),
    *("generated_inputs", "inputs", "outputs", "quantization_mode", "output_names"),
    *("input_names", "activity_regularizer", "trainable", "dtype_policy"),
}


def _is_plain(value):
    kinds = (bool, int, float, str, bytes, type(None), np.ndarray, np.generic)
    return all(
        isinstance(leaf, (*kinds, keras.Loss)) or inspect.isroutine(leaf)
        for leaf in keras.tree.flatten(value)
    )


def _by_name(model):
    """Layers and nested models by their names."""
    graph = Graph(model)
    return {
        **graph.layers(),
        **{call.name: call.operation for call in graph.model_calls},
    }


def _own_variables(model):
    of_graph = {
        id(variable)
        for layer in Graph(model).layers().values()
        for variable in layer.weights
    }
    return [v for v in model.weights if id(v) not in of_graph]
