"""Reference sizes of inputs, at which a model of free sizes is counted."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras

from tfcompress.graph.graph import Graph
from tfcompress.graph.signature import functional, input_names

Shape: TypeAlias = tuple[int, ...]
# Of the only input, or of all inputs in order or by name.
InputShape: TypeAlias = Shape | Sequence[Shape] | Mapping[str, Shape]

# Sizes that errors propose: of images and volumes, and of sequences.
_IMAGE_SIZE = 224
_LENGTH = 128


def parse_input_shape(input_shape: InputShape | None) -> InputShape | None:
    """Checks the form of an argument `input_shape`.

    Args:
        input_shape: tuple of ints without the batch axis; for several inputs a list of
            these in the order of the inputs, or a dict by their names; or None.

    Returns:
        The argument, made of tuples of Python ints.

    Raises:
        ValueError: if it has another form, or a size that is no positive integer.
    """
    if input_shape is None:
        return None
    if isinstance(input_shape, Mapping):
        return {name: _shape(shape) for name, shape in input_shape.items()}
    if isinstance(input_shape, Sequence) and any(
        isinstance(shape, Sequence) for shape in input_shape
    ):
        return [_shape(shape) for shape in input_shape]
    return _shape(input_shape)


def _shape(sizes: Any) -> Shape:
    if not isinstance(sizes, Sequence) or not all(map(_is_size, sizes)):
        raise ValueError(
            "`input_shape` is a tuple of positive integers without the batch axis, "
            "such as (224, 224, 3), or a list or dict of these for several inputs. "
            f"Received: {sizes!r}."
        )
    return tuple(map(int, sizes))


def _is_size(size):
    integral = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    return integral and size > 0


def sized_graph(model: keras.Model, input_shape: InputShape | None) -> Graph:
    """Returns the graph of a model, traced at the sizes of `input_shape`.

    Args:
        model: built Functional or Sequential model.
        input_shape: see `parse_input_shape`. None leaves sizes as open as they are.

    Raises:
        ValueError: if the model has no graph, or takes no inputs of that shape.
    """
    if input_shape is None:
        return Graph(model)
    Graph(model)  # its errors have nothing to do with `input_shape`
    inputs = _sized_inputs(functional(model), parse_input_shape(input_shape))
    try:
        return Graph(model, inputs)
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"Model '{model.name}' must be able to compute on inputs of `input_shape`. "
            f"Received: input_shape={input_shape!r}, with which Keras raises "
            f"{type(error).__name__}: {message[:300]}"
        ) from error


def _sized_inputs(model, input_shape):
    """Symbolic inputs of the shapes, in the order of the model's."""
    names = input_names(model)
    if isinstance(input_shape, dict):
        shapes = [input_shape.get(name) for name in names]
        fits = set(input_shape) == set(names)
    else:
        shapes = input_shape if isinstance(input_shape, list) else [input_shape]
        fits = len(shapes) == len(names)
    declared = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if not fits or not all(map(_agrees, shapes, declared)):
        expected = dict(zip(names, declared, strict=True))
        raise ValueError(
            "`input_shape` has the sizes of the model's inputs, without the batch "
            f"axis: {expected}, where None is any size. Received: "
            f"input_shape={input_shape!r}."
        )
    return [
        keras.KerasTensor(
            (tensor.shape[0], *shape),
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=tensor.name,
        )
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    ]


def _agrees(shape, declared):
    return len(shape) == len(declared) and all(
        wanted in (None, size) for size, wanted in zip(shape, declared, strict=True)
    )


def example_input_shape(model: keras.Model) -> InputShape:
    """Returns an `input_shape` that fits a model, for error messages."""
    model = functional(model)
    shapes = [
        tuple(size or _example_size(tensor) for size in tensor.shape[1:])
        for tensor in model.inputs
    ]
    if len(shapes) == 1:
        return shapes[0]
    return dict(zip(input_names(model), shapes, strict=True))


def _example_size(tensor):
    return _IMAGE_SIZE if len(tensor.shape) > 3 else _LENGTH
