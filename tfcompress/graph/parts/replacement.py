"""Models in which parts replace layers that schemes cannot treat whole."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import keras

from tfcompress.compat import keras_private
from tfcompress.graph.graph import Graph, check_has_graph, own_classes
from tfcompress.graph.parts import (
    einsum,
    nested,
    recurrent,
    separable,
    subclass,
    wrappers,
)
from tfcompress.graph.parts.examples import NoPartsError, brief
from tfcompress.graph.rebuild import (
    MaskAxes,
    MasksDifferError,
    NestedParts,
    RestartError,
    clone_layer,
    copy_weights,
    rebuild,
)
from tfcompress.layers.registry import FORMS
from tfcompress.layers.tensors.masking import DetachMask

# Modules with functions `parts` and `copy_weights`, by the layers that they split. A
# `chain` makes functions of the parts, to be called one after the other.
_SPLITS = {
    kind: module
    for module in (einsum, recurrent, separable, wrappers)
    for kind in module.KINDS
}
# A shape per tensor of a call.
Shapes: TypeAlias = list[tuple[int | None, ...]]
# Layers of Keras that users derive theirs from.
_KNOWN = (*(forms.plain for forms in FORMS), *_SPLITS)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Model with the parts of its layers.

    Attributes:
        model: `keras.Model`. The given model if no layer was replaced.
        whole_of: `{name: name}`. Layers that were split, by the names of their parts.
        nested: frozenset of str. Names of layers that a nested model of their
            sublayers replaces. The names of the sublayers begin with "NAME/".
        reasons: `{name: str}`. Layers with sublayers that stay whole, and why.
    """

    model: keras.Model
    whole_of: Mapping[str, str]
    nested: frozenset[str]
    reasons: Mapping[str, str]

    def names(self, name: str) -> list[str]:
        """Returns the name of a layer, and those of the layers that it is a part of."""
        names = [name]
        if name in self.whole_of:
            names.append(self.whole_of[name])
        places = [i for i, letter in enumerate(name) if letter == "/"]
        return names + [name[:i] for i in reversed(places) if name[:i] in self.nested]


def replace_by_parts(model: keras.Model) -> Replacement:
    """Replaces layers that hold several kernels by layers that hold one each.

    A separable convolution becomes a chain of two layers. A layer that is made of other
    layers, of Keras or of the user, becomes a nested model of these with its name.

    Args:
        model: built Functional or Sequential model. It is left untouched.

    Returns:
        `Replacement`, with a model that computes the same.

    Raises:
        ValueError: if the model has no graph, or a layer cannot be copied.
    """
    check_has_graph(model)
    whole: dict[int, str] = {}  # reasons to leave a layer as it is
    mask_axes: MaskAxes = {}
    # A look at all layers takes little time, but finds those of a teacher as well.
    layers = keras_private.flatten_layers(model)[1:]
    if not any(map(_may_replace, layers)) or not any(
        map(_may_replace, Graph(model).layers().values())
    ):
        return Replacement(model, {}, frozenset(), {})
    shapes: dict[int, Shapes] = {}
    while True:
        replacing = _Replacing(whole, mask_axes, shapes)
        try:
            return replacing.run(model)
        except _StaysWholeError as error:
            whole[id(error.layer)] = error.reason
        except (MasksDifferError, _ShapesDifferError):
            pass  # the next pass knows them all


def _may_replace(layer):
    return _may_split(layer) or nested.may_nest(layer) or _may_not_copy(layer)


def _may_split(layer):
    return type(layer) in _SPLITS or subclass.base_of(layer, _KNOWN) is not None


def _may_not_copy(layer):
    """Whether a layer cannot be copied. Those of Keras can, which takes no attempt."""
    parts = keras_private.flatten_layers(layer)
    return any(own_classes(type(part)) for part in parts) and _copy(layer) is None


def _copy(layer):
    """A new layer like another, or None if it cannot be copied."""
    try:
        return clone_layer(layer)
    except ValueError:
        return None


class _StaysWholeError(RestartError):
    """Reason, found too late for this pass, to leave a layer as it is."""

    def __init__(self, layer: keras.layers.Layer, reason: str) -> None:
        super().__init__(layer.name)
        self.layer, self.reason = layer, reason


class _ShapesDifferError(RestartError):
    """A later call of a layer has other sizes than the first one."""


class _Replacing:
    """One pass over a model.

    Attributes:
        whole: `{id(layer): str}`. Reasons to leave layers as they are.
        shapes: `{id(layer): shapes}`. Shapes of the arguments of layers that are called
            on several sizes, which are open there. The pass adds to it.
    """

    def __init__(
        self, whole: dict[int, str], mask_axes: MaskAxes, shapes: dict[int, Shapes]
    ) -> None:
        self.whole, self.shapes = whole, shapes
        self._mask_axes = mask_axes
        # `(layer with the weights, parts)` by the layers' ids.
        self._parts: dict[int, tuple[keras.layers.Layer, list[keras.layers.Layer]]] = {}
        # `(model, form of the arguments, their shapes)` by the layers' ids.
        self._traced: dict[int, tuple[Any, Any, Shapes]] = {}
        # Layers that nested models replace, by the ids of their parts.
        self._holders: dict[int, keras.layers.Layer] = {}

    def run(self, model: keras.Model) -> Replacement:
        """Returns the model with the parts.

        Raises:
            RestartError: if a layer has to be left as it is, or masks were not known.
        """
        result, pairs = rebuild(model, self._replace, mask_axes=self._mask_axes)
        if not self._parts and not self._traced:
            named = Graph(model).layers().items()
            reasons = {x: self.whole[id(y)] for x, y in named if id(y) in self.whole}
            return Replacement(model, {}, frozenset(), reasons)
        for old, new in pairs:
            source, parts = self._parts.get(id(old), (old, [new]))
            if type(source) in _SPLITS and id(old) in self._parts:
                _SPLITS[type(source)].copy_weights(source, parts)
            else:
                copy_weights(source, new)
        graph = Graph(result)
        names = {id(layer): name for name, layer in graph.layers().items()}
        calls = [{c.name for c in g.model_calls} for g in (graph, Graph(model))]
        return Replacement(
            result,
            whole_of={
                names[id(part)]: names[id(parts[-1])]
                for _, parts in self._parts.values()
                for part in parts
            },
            nested=frozenset(calls[0] - calls[1]),
            reasons={
                names[id(new)]: self.whole[id(old)]
                for old, new in pairs
                if id(old) in self.whole
            },
        )

    def _replace(self, layer):
        if id(layer) in self.whole:
            return self._clone(layer)
        if _may_split(layer):
            try:
                return self._split(layer)
            except NoPartsError as error:
                self.whole[id(layer)] = str(error)
                return self._clone(layer)
        copy = None if nested.may_nest(layer) else _copy(layer)
        if copy is not None:
            return copy
        return NestedParts(
            functools.partial(self._nest, layer), functools.partial(_failed, layer)
        )

    def _split(self, layer):
        """The parts of a layer, to be called one after the other."""
        base = subclass.base_of(layer, _KNOWN)
        source = layer if base is None else subclass.as_base(layer, base)
        module = _SPLITS.get(type(source))
        parts = module.parts(source) if module else [clone_layer(source)]
        self._parts[id(layer)] = source, parts
        return getattr(module, "chain", list)(parts)

    def _clone(self, layer):
        """A copy of a layer that stays whole.

        Raises:
            _StaysWholeError: if it cannot be copied, but perhaps the layer around it.
            ValueError: if there is none.
        """
        try:
            return clone_layer(layer)
        except ValueError as error:
            reason = self.whole.get(id(layer), "has no other form")
            holder = self._holders.get(id(layer))
            if holder is None:
                raise ValueError(
                    f"{error} It stays as it is because it {reason}."
                ) from error
            raise _StaysWholeError(
                holder, f"holds '{layer.name}', which {reason} and cannot be copied"
            ) from error

    def _nest(self, layer, args, kwargs):
        """The model of a layer's sublayers and its inputs, or a copy and None."""
        tensors, masks = nested.tensors_of(args, kwargs)
        form, shapes = nested.form_of(args, kwargs), [x.shape for x in tensors]
        if id(layer) not in self._traced:
            known = self.shapes.get(id(layer), shapes)
            try:
                traced = nested.trace(layer, *nested.with_shapes(args, kwargs, known))
            except NoPartsError as error:
                self.whole[id(layer)] = str(error)
                return self._clone(layer), None
            self._traced[id(layer)] = traced, form, known
            self._holders.update({id(part): layer for part in traced.operations})
        traced, first, known = self._traced[id(layer)]
        if form != first:
            raise _StaysWholeError(layer, "is called with arguments of several kinds")
        common = [_common(*pair) for pair in zip(known, shapes, strict=True)]
        if common != known:
            self.shapes[id(layer)] = common
            raise _ShapesDifferError
        return traced, [*map(_without_mask, tensors), *masks]


def _failed(layer, error):
    raise _StaysWholeError(layer, f"cannot be made of its parts ({brief(error)})")


def _common(shape, other):
    """A shape that is open where another one differs."""
    return tuple(n if n == m else None for n, m in zip(shape, other, strict=True))


def _without_mask(tensor):
    if keras_private.mask_of(tensor) is None:
        return tensor
    return DetachMask(dtype=tensor.dtype)(tensor)
