"""A new model from an old one, layer by layer."""

import collections
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from tfcompress.compat import keras_private
from tfcompress.graph.graph import is_model
from tfcompress.layers.cloning import clone_layer
from tfcompress.layers.tensors.masking import ReadMask

__all__ = ["clone_layer", "copy_weights", "rebuild"]

Layer: TypeAlias = keras.layers.Layer
# Arguments that Keras adds to the calls of layers that take them.
_ADDED = ("training", "mask")


@dataclasses.dataclass(frozen=True)
class NestedParts:
    """Replacement of a layer by its sublayers, in a nested model of its name.

    Attributes:
        trace: function of the arguments of a call. Returns `(replacement, tensors)`: a
            `keras.Function` of the sublayers, to be rebuilt and called on the list of
            tensors; or a new layer in place of the old one, and None.
        failed: function that is called with the error if that cannot be rebuilt.
    """

    trace: Callable[..., tuple[Any, list[keras.KerasTensor] | None]]
    failed: Callable[[Exception], None]


# By the id of a nested model, the numbers of axes of the masks of its inputs; 0 where
# no call has one.
MaskAxes: TypeAlias = dict[int, list[int]]


class RestartError(Exception):
    """Reason to rebuild a model again, with other replacements or masks."""


class MasksDifferError(RestartError):
    """A later call of a nested model has masks that the first one has not."""


def copy_weights(old: Layer, new: Layer) -> None:
    """Gives the layer `new` the weights of `old`, which has the same variables.

    Raises:
        ValueError: if the variables differ, because the configuration of `old` misses
            arguments of its constructor.
    """
    shapes = [[tuple(x.shape) for x in layer.weights] for layer in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Layer '{old.name}' of type {type(old).__name__} and its copy must have "
            "weights of the same shapes. Give its class a `get_config` that returns "
            "all arguments of its constructor. Received: "
            f"{shapes[0]}, and {shapes[1]} in the copy."
        )
    new.set_weights(old.get_weights())
    if isinstance(new, keras.layers.Normalization):
        # It computes with tensors that are derived from its weights.
        new.finalize_state()


def rebuild(
    model: keras.Model,
    replace: Callable[[Layer], Any],
    replace_operation: Callable[[keras.Operation], Callable] | None = None,
    model_class: Callable[..., Any] = keras.Model,
    mask_axes: MaskAxes | None = None,
    after: Callable[[keras.Operation, int], Sequence[Layer]] | None = None,
) -> tuple[keras.Model, list[tuple[Layer, Layer]]]:
    """Builds the same graph from new layers.

    Args:
        model: built Functional or Sequential model. It is left untouched.
        replace: function from an old layer to its unbuilt replacement. It may also
            return a list of layers to call one after the other, of which the last is
            the replacement. None takes the layer out of the graph, and its input
            passes through. `NestedParts` replaces it by its sublayers. The function is
            called once per layer.
        replace_operation: function from an operation that is no layer to a callable
            with the same arguments. By default such operations are cloned.
        model_class: class of the result, or a function with the arguments inputs,
            outputs and name that makes it. Nested models become `keras.Model`, with
            inputs of the shape that they are called with.
        mask_axes: see `MaskAxes`. If given, symbolic tensors have symbolic masks across
            the borders of nested models too. Those of Keras have none there. Masks of
            all calls are added to it.
        after: function from an old layer or operation, the `InputLayer`s included, and
            the number of its call in its model, to new layers that are called on the
            result, one after the other. None calls none.

    Returns:
        `(new_model, pairs)`: a Functional model with newly initialized weights, and
        a list of `(old layer, new layer)`, those of nested models included.

    Raises:
        MasksDifferError: if `mask_axes` was incomplete. Then it is complete for one
            model more, and another call may succeed.
    """
    rebuilding = _Rebuilding(
        replace, replace_operation or clone_layer, mask_axes, after
    )
    new_model = rebuilding.build(model, model.inputs, model_class)
    return new_model, rebuilding.pairs()


class _Rebuilding:
    """Replacements for the layers and operations of a model and its nested models."""

    def __init__(
        self,
        replace: Callable[[Layer], Any],
        replace_operation: Callable[[keras.Operation], Callable],
        mask_axes: MaskAxes | None,
        after: Callable[[keras.Operation, int], Sequence[Layer]] | None,
    ) -> None:
        self._replace = replace
        self.mask_axes = mask_axes
        self._replace_operation = replace_operation
        self._after = after
        # `(old, chain)` by the old one's id; a chain is called one after the other.
        self._chains: dict[int, tuple[keras.Operation, list[Callable]]] = {}

    def build(
        self, model: keras.Model, tensors: Any, model_class: Callable[..., Any]
    ) -> keras.Model:
        """The rebuilt model, with inputs of the shapes of `tensors`."""
        is_sequential = isinstance(model, keras.Sequential)
        shapes = iter([tensor.shape for tensor in keras.tree.flatten(tensors)])
        inputs = keras.tree.map_structure(
            lambda old: _input_like(old, _called_shape(old.shape, next(shapes))),
            model.inputs[0] if is_sequential else model.input,
        )
        _read_masks(inputs, (self.mask_axes or {}).get(id(model), ()))
        tensors = keras.tree.map_structure(
            self._after_input, model.inputs[0] if is_sequential else model.input, inputs
        )
        if is_sequential:
            outputs = tensors
            for layer in model.layers:
                outputs = self._numbered()(layer)(outputs)
        else:
            outputs = keras_private.run_through_graph(model, tensors, self._numbered())
        outputs = _with_names(inputs, outputs, _output_names(model))
        return model_class(inputs=inputs, outputs=outputs, name=model.name)

    def call(self, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Calls a rebuilt nested model; its outputs have symbolic masks."""
        outputs = model(*args, **kwargs)
        if self.mask_axes is not None:
            _read_masks(outputs, _mask_axes(model.outputs))
        return outputs

    def pairs(self) -> list[tuple[Layer, Layer]]:
        """`(old layer, new layer)` of all layers that a layer replaces."""
        lasts = [(old, chain[-1]) for old, chain in self._chains.values()]
        pairs = [(a, b.layer if isinstance(b, _NestedLayer) else b) for a, b in lasts]
        return [(a, b) for a, b in pairs if isinstance(b, keras.layers.Layer)]

    def _after_input(self, old, new):
        operation = keras_private.maker_of(old)
        for layer in self._after(operation, 0) if self._after else ():
            new = layer(new)
        return new

    def _numbered(self):
        """Function from an operation to the replacement of its next call."""
        counts: collections.Counter[int] = collections.Counter()

        def replacement(operation):
            number = counts[id(operation)]
            counts[id(operation)] += 1
            new = self._replacement(operation)
            after = self._after(operation, number) if self._after else ()
            return functools.partial(_call_then, new, after) if after else new

        return replacement

    def _replacement(self, operation):
        if id(operation) not in self._chains:
            built = self._new(operation)
            chain = built if isinstance(built, list) else [built or _pass_through]
            self._chains[id(operation)] = (operation, chain)
        chain = self._chains[id(operation)][1]
        return chain[0] if len(chain) == 1 else functools.partial(_call_all, chain)

    def _new(self, operation):
        if is_model(operation):
            return _Nested(operation, self)
        if not isinstance(operation, keras.layers.Layer):
            return self._replace_operation(operation)
        built = self._replace(operation)
        if isinstance(built, NestedParts):
            return _NestedLayer(built, self)
        return built


class _Nested:
    """A nested model that is built when it is first called."""

    def __init__(self, old: keras.Model, rebuilding: _Rebuilding) -> None:
        self._old, self._rebuilding = old, rebuilding
        self._model: keras.Model | None = None

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._add_masks(inputs)
        if self._model is None:
            self._model = self._rebuilding.build(self._old, inputs, keras.Model)
        return self._rebuilding.call(self._model, inputs, *args, **kwargs)

    def _add_masks(self, inputs):
        known = self._rebuilding.mask_axes
        if known is None:
            return
        axes = _mask_axes(inputs)
        before = known.get(id(self._old), [0] * len(axes))
        known[id(self._old)] = list(map(max, before, axes))
        if self._model is not None and known[id(self._old)] != before:
            raise MasksDifferError


class _NestedLayer:
    """A nested model, or a layer, in place of a layer; built when first called.

    Attributes:
        layer: new layer, or None.
    """

    def __init__(self, parts: NestedParts, rebuilding: _Rebuilding) -> None:
        self._parts, self._rebuilding = parts, rebuilding
        self._model: keras.Model | None = None
        self.layer: Layer | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layer is not None:
            return self.layer(*args, **kwargs)
        new, tensors = self._parts.trace(args, kwargs)
        if tensors is None:
            self.layer = new
            return new(*args, **kwargs)
        try:
            self._model = self._model or self._rebuilding.build(
                new, tensors, keras.Model
            )
        except RestartError:
            raise
        except Exception as error:
            self._parts.failed(error)
            raise
        return self._rebuilding.call(self._model, tensors)


def _mask_axes(tensors):
    """Numbers of axes of the masks of symbolic tensors; 0 where there is none."""
    masks = map(keras_private.mask_of, keras.tree.flatten(tensors))
    return [0 if mask is None else len(mask.shape) for mask in masks]


def _read_masks(tensors, mask_axes):
    """Gives symbolic tensors masks that are read when the tensors are computed."""
    for tensor, axes in zip(keras.tree.flatten(tensors), mask_axes, strict=False):
        if axes:
            read = ReadMask(axes, dtype=tensor.dtype)
            keras_private.set_mask(tensor, read(tensor))


def _input_like(old: keras.KerasTensor, shape: list[int | None]) -> keras.KerasTensor:
    """An input with the names of another and of its layer, which may differ."""
    name = keras_private.maker_of(old).name
    new = keras.Input(batch_shape=shape, dtype=old.dtype, name=name)
    new.name = old.name
    return new


def _called_shape(declared, called):
    """The declared shape, with the sizes of the call where it is not open."""
    return [
        size if size is None or new is None else new
        for size, new in zip(declared, called, strict=True)
    ]


def _output_names(model):
    """Names of a model's outputs, which are those of the layers that make them."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name] * len(model.outputs)
    return model.output_names


def _with_names(inputs, outputs, names):
    """Outputs that `Identity` layers make where their names would change.

    Keras knows losses, metrics and targets by these names. A name that another layer
    of the new model has is left to it.

    Args:
        inputs, outputs: structures of `KerasTensor`.
        names: names that the outputs should have.
    """
    tensors = keras.tree.flatten(outputs)
    found = [keras_private.maker_of(tensor).name for tensor in tensors]
    if found == list(names):
        return outputs
    taken = {operation.name for operation in keras.Function(inputs, outputs).operations}
    identities: dict[str, Layer] = {}
    for place, name in enumerate(names):
        if found[place] != name and name not in taken:
            identity = identities.setdefault(
                name, keras.layers.Identity(name=name, dtype=tensors[place].dtype)
            )
            tensors[place] = identity(tensors[place])
    return keras.tree.pack_sequence_as(outputs, tensors)


def _pass_through(x, *args, **kwargs):
    return x


def _call_then(first, others, *args, **kwargs):
    x = first(*args, **kwargs)
    for layer in others:
        x = layer(x)
    return x


def _call_all(chain, x, *args, **kwargs):
    for layer in chain[:-1]:
        x = layer(x)
    last = chain[-1]
    parameters = inspect.signature(last.call).parameters
    # Keras added them for a layer that takes them, which need not be the new one.
    kwargs = {k: v for k, v in kwargs.items() if k not in _ADDED or k in parameters}
    return last(x, *args, **kwargs)
