"""Weights, constants and open sizes in a `call`, made tensors of its graph."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.layers.tensors.sources import Constant, OwnWeight, WithSizes

# Functions of keras.ops that take sizes.
_OF_SIZES = (
    *("arange", "broadcast_to", "full", "ones", "repeat", "reshape", "tile", "zeros"),
)


def own_weights(layer: keras.layers.Layer) -> dict[str, OwnWeight]:
    """Returns layers of the variables that are attributes of a layer, by their names.

    A variable of several attributes has one layer. Generators of random numbers have
    none.
    """
    made: dict[int, OwnWeight] = {}
    result = {}
    known = {id(variable) for variable in layer.weights}
    for name, value in vars(layer).items():
        if id(value) not in known:
            continue
        if id(value) not in made:
            made[id(value)] = OwnWeight.of(
                value,
                name=name.strip("_"),
                trainable=value.trainable,
                dtype=layer.dtype_policy,
            )
        result[name] = made[id(value)]
    return result


@contextlib.contextmanager
def as_tensors(
    layer: keras.layers.Layer,
    weights: Mapping[str, OwnWeight],
    tensor: keras.KerasTensor,
) -> Iterator[None]:
    """Replaces variables of a layer by symbolic tensors, in a `with`.

    Args:
        layer: layer.
        weights: result of `own_weights`.
        tensor: symbolic tensor of the graph.
    """
    attributes = vars(layer)
    before = {name: attributes[name] for name in weights}
    tensors = {id(x): x(tensor) for x in weights.values()}
    attributes.update({name: tensors[id(x)] for name, x in weights.items()})
    try:
        yield
    finally:
        attributes.update(before)


@contextlib.contextmanager
def constants_as_tensors(
    layer: keras.layers.Layer, scope: Any, tensor: keras.KerasTensor
) -> Iterator[None]:
    """Makes calls of sublayers on constants calls on symbolic tensors, in a `with`.

    Only sublayers with variables need it, such as an embedding of positions.

    Args:
        layer: layer with sublayers.
        scope: `keras.StatelessScope` in which its `call` runs.
        tensor: symbolic tensor of the graph.
    """
    parts = [x for x in keras_private.flatten_layers(layer)[1:] if x.variables]
    before = [vars(part).get("call") for part in parts]

    def symbolic(leaf):
        is_array = hasattr(leaf, "__array__") or ops.is_tensor(leaf)
        return Constant(leaf)(tensor) if is_array else leaf

    def caller(part):
        original = part.call

        @functools.wraps(original)
        def call(*args, **kwargs):
            # Symbolic calls of sublayers open scopes of their own.
            if keras_private.stateless_scope() is scope:
                new = keras.tree.map_structure(symbolic, (args, kwargs))
                if any(map(keras.utils.is_keras_tensor, keras.tree.flatten(new))):
                    return part(*new[0], **new[1])
            return original(*args, **kwargs)

        return call

    for part in parts:
        vars(part)["call"] = caller(part)
    try:
        yield
    finally:
        for part, call in zip(parts, before, strict=True):
            if call is None:
                del vars(part)["call"]
            else:
                vars(part)["call"] = call


class _OpenSize:
    """Multiple of a size that a symbolic tensor leaves open."""

    def __init__(self, tensor: keras.KerasTensor, axis: int, times: int = 1) -> None:
        self.tensor, self.axis, self.times = tensor, axis, times

    def __mul__(self, number: int) -> "_OpenSize":
        if not isinstance(number, int):
            return NotImplemented
        return _OpenSize(self.tensor, self.axis, self.times * number)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{self.times} x the open axis {self.axis}"


@contextlib.contextmanager
def open_sizes() -> Iterator[None]:
    """Lets functions of `keras.ops` take sizes that `ops.shape` cannot know yet.

    `ops.shape` of a symbolic tensor has None there, which they refuse.
    """
    names = ("shape", *_OF_SIZES)
    before = {name: getattr(ops, name) for name in names}
    for name in _OF_SIZES:
        setattr(ops, name, _taking_sizes(name, before[name]))
    ops.shape = functools.partial(_shape, before["shape"])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(ops, name, function)


def _shape(original, x):
    sizes = original(x)
    if not keras.utils.is_keras_tensor(x):
        return sizes
    return tuple(_OpenSize(x, i) if n is None else n for i, n in enumerate(sizes))


def _taking_sizes(name, original):
    @functools.wraps(original)
    def function(*args, **kwargs):
        leaves = keras.tree.flatten((args, kwargs))
        if not any(isinstance(leaf, _OpenSize) for leaf in leaves):
            return original(*args, **kwargs)
        if name == "reshape":
            shape = _known_shape(*args, **kwargs)
            if shape is not None:
                return original(args[0] if args else kwargs["x"], shape)
        return _with_sizes(name, args, kwargs)

    return function


def _known_shape(x, newshape):
    """The new shape with -1 for its open size, or None if that is not possible."""
    opened = [i for i, size in enumerate(newshape) if isinstance(size, _OpenSize)]
    if len(opened) > 1:
        return None
    shape = [-1 if i in opened else size for i, size in enumerate(newshape)]
    if shape.count(-1) == 1:
        return shape
    if opened != [0] or newshape[0].axis or newshape[0].times != 1:
        return None
    # The batch stays, so that the other sizes are known.
    sizes = x.shape[1:]
    known = [size for size in shape if size != -1]
    if None in sizes or 0 in known:
        return None
    total = functools.reduce(lambda a, b: a * b, sizes, 1)
    left = total // functools.reduce(lambda a, b: a * b, known, 1)
    return [-1, *(left if size == -1 else size for size in shape[1:])]


def _with_sizes(name, args, kwargs):
    tensors: list[keras.KerasTensor] = []

    def place(tensor):
        tensors.append(tensor)
        return len(tensors) - 1

    sizes = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, _OpenSize)]

    def described(value):
        if isinstance(value, (list, tuple)):
            return [described(x) for x in value]
        if isinstance(value, dict):
            return {key: described(x) for key, x in value.items()}
        if isinstance(value, _OpenSize):
            size = {"axis": value.axis, "times": value.times}
            return {"size_of": place(value.tensor), **size}
        if keras.utils.is_keras_tensor(value):
            return {"tensor": place(value)}
        if hasattr(value, "__array__") or ops.is_tensor(value):
            return {"tensor": place(Constant(value)(sizes[0].tensor))}
        return value

    arguments = [described(args), described(kwargs)]
    return WithSizes(name, arguments)(tensors)
