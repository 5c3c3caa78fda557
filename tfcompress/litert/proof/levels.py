"""Comparison of Keras and LiteRT on the same levels of quantized activations.

Keras and LiteRT sum in different orders, so that values differ in the last bits before
they are rounded. A few activations then land on neighboring levels. Each moves later
values by much more than float arithmetic does. Every operation can be proven all the
same: Keras computes with the levels that LiteRT rounded to, and the two must agree on
the values before each rounding.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress import layers
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.integer_forms import in_float
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.litert import flatbuffer
from tfcompress.litert.proof.float_errors import EPS, run_with_errors
from tfcompress.litert.runtime import Runner
from tfcompress.types import Tensor

# Difference of two float32 computations, as a multiple of the error of one.
_MARGIN = 4.0
# Differences above it are of other values, and not of float arithmetic.
_ONE_LEVEL = 1.0
# Operators that clip values to the range before they are rounded.
_BOUNDS = ("MINIMUM", "MAXIMUM", "RELU", "RELU6")
# Choices of alike roundings that are tried for a batch.
_MOST_CHOICES = 32


def has_quantized_activations(model: keras.Model) -> bool:
    """Returns whether a Functional model has `QuantizeActivation` layers."""
    return any(
        isinstance(layer, layers.QuantizeActivation)
        for layer in Graph(model).layers().values()
    )


class SameLevels:
    """Runner of a file, and of Keras on the levels that the file rounds to.

    Args:
        content: bytes of a `.tflite` that LiteRT has loaded.
        model: the Functional model that it was exported from.
        tolerance: float. Difference of values before they are rounded, relative to the
            largest level, that is allowed in any case. Where sums are long, or their
            terms large, `_MARGIN` times the error of float32 sums is.
    """

    def __init__(self, content: bytes, model: keras.Model, tolerance: float) -> None:
        content, self._factors = _returning_levels(content)
        self._runner = Runner(content)
        self._count = len(keras.tree.flatten(model.output))
        self._model = _on_given_levels(in_float(model), self._levels)
        self._tolerance = tolerance
        # Inputs and outputs of the file's roundings, for one batch.
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._roundings: list[_Rounding] = []
        # Indices of pairs to take, by the index of a rounding; others are the closest.
        self._chosen: Mapping[int, int] = {}
        # In a run with errors: the roundings that are taken again, and their errors.
        self._replayed: Iterator[_Rounding] | None = None
        self._errors: list[float] = []

    def __call__(
        self, batch: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Runs one batch.

        Args:
            batch: list of one array per input.

        Returns:
            `(expected, received)`: Keras's and LiteRT's outputs, lists of arrays.

        Raises:
            ValueError: if the file does not round the values that Keras rounds; it
                names the first layer with a difference.
        """
        results = self._runner(batch)
        received, rounded = results[: self._count], results[self._count :]
        self._pairs = list(zip(rounded[::2], rounded[1::2], strict=True))
        inputs = keras.tree.pack_sequence_as(self._model.input, batch)
        outputs, failure = self._run(inputs, {})
        if failure is not None:
            # Without their scales, roundings of one tensor are hard to tell apart.
            for chosen in itertools.islice(self._choices(failure), _MOST_CHOICES):
                outputs, other_failure = self._run(inputs, chosen)
                if other_failure is None:
                    break
            else:
                raise ValueError(
                    f"LiteRT should round what Keras rounds: '{failure.name}' within "
                    f"{failure.limit:.3g} levels. Received: a difference of "
                    f"{failure.distance:.3g} levels at least. The file is not this "
                    "model's, or the runtime computes one of its operators "
                    "differently."
                )
        return [ops.convert_to_numpy(output) for output in outputs], received

    def _run(self, inputs, chosen):
        """Runs Keras; returns its outputs and the first `_Failure`, or None."""
        self._chosen, self._roundings = chosen, []
        outputs = keras.tree.flatten(self._model(inputs, training=False))
        limits = [self._tolerance * x.layer.high for x in self._roundings]
        if not _are_within(self._roundings, limits):
            limits = np.maximum(limits, _MARGIN * self._float_errors(inputs)).tolist()
        for index, (rounding, limit) in enumerate(
            zip(self._roundings, limits, strict=True)
        ):
            if not _are_within([rounding], [limit]):
                name, distance = rounding.layer.name, rounding.distance
                return outputs, _Failure(index, name, limit, distance)
        return outputs, None

    def _choices(self, failure):
        """Yields pairs to take before a failure, few that are not the closest first."""
        others = [
            (index, pair)
            for index, rounding in enumerate(self._roundings[: failure.index])
            for pair in rounding.alike
        ]
        for count in range(1, len(others) + 1):
            for chosen in itertools.combinations(others, count):
                if len(dict(chosen)) == count:
                    yield dict(chosen)

    def _levels(self, layer: "_GivenLevels", exact: np.ndarray) -> np.ndarray:
        """Returns the file's levels for the values that a layer is to round.

        Of the file's roundings with such values, one with the scale of the layer is
        taken, or the closest if the converter has merged the scale into another number.
        `_roundings` gets the largest difference from its values, or from a correct
        rounding, in levels. The converter may round before it moves axes, so that
        values in another order count as well. A wrong order moves the values of the
        next rounding, or the outputs.
        """
        if self._replayed is not None:
            rounding = next(self._replayed)
            moved = float(np.abs(exact - rounding.exact).max())
            self._errors.append(moved + EPS * layer.high)  # that of the division
            return rounding.levels
        pairs = {i: x for i, x in enumerate(self._pairs) if x[0].size == exact.size}
        chosen = self._chosen.get(len(self._roundings))
        if chosen is not None:
            pairs = {chosen: pairs[chosen]}
        found = _by_distance(pairs, exact)
        if not found or found[0].distance > _ONE_LEVEL:
            ordered = {i: _in_order_of(exact, *pair) for i, pair in pairs.items()}
            found = sorted(found + _by_distance(ordered, exact), key=_distance)
        factor = np.float32(1) / np.float32(ops.convert_to_numpy(layer.scale))
        same = [x for x in found if self._factors[x.pair] == factor]
        if same and same[0].distance <= _ONE_LEVEL:
            found = same
        best = found[0] if found else _Match(-1, np.inf, exact)
        near = self._tolerance * layer.high
        alike = tuple(
            x.pair
            for x in found[1:]
            if x.distance <= near and not np.array_equal(x.levels, best.levels)
        )
        self._roundings.append(
            _Rounding(layer, exact, best.levels, best.distance, alike)
        )
        return best.levels

    def _float_errors(self, inputs: Any) -> np.ndarray:
        """Returns the errors of float32 arithmetic before each rounding, in levels."""
        self._errors, self._replayed = [], iter(self._roundings)
        try:
            run_with_errors(self._model, inputs, _GivenLevels)
        finally:
            self._replayed = None
        return np.array(self._errors)


@dataclass(frozen=True)
class _Rounding:
    """Call of a layer that rounds.

    Attributes:
        layer: `_GivenLevels`.
        exact: float32 array. Keras's values before the rounding, in levels.
        levels: float32 array. The file's levels.
        distance: float. Largest difference of the file's values from them, in levels.
        alike: tuple of int. Indices of the file's other roundings of such values, to
            other levels.
    """

    layer: "_GivenLevels"
    exact: np.ndarray
    levels: np.ndarray
    distance: float
    alike: tuple[int, ...]


@dataclass(frozen=True)
class _Failure:
    """Rounding whose values differ by more than a limit, in levels."""

    index: int
    name: str
    limit: float
    distance: float


@dataclass(frozen=True)
class _Match:
    """Pair of the file's values that may be those of a rounding, with its levels."""

    pair: int
    distance: float
    levels: np.ndarray


def _distance(match):
    return match.distance


def _by_distance(pairs, exact):
    """The `_Match` of each pair without NaN, the closest first."""
    found = []
    for index, pair in pairs.items():
        before, after = (array.reshape(exact.shape) for array in pair)
        distance = np.abs(before - exact).max()
        distance = max(distance, np.abs(after - before).max() - 0.5)
        if distance < np.inf:  # NaN is not
            found.append(_Match(index, float(distance), after))
    return sorted(found, key=_distance)


def _in_order_of(exact, before, after):
    """A rounding's values and levels, in the order of other values by their size."""
    places, order = np.argsort(exact, axis=None), np.argsort(before, axis=None)
    moved = np.empty((2, exact.size), exact.dtype)
    moved[:, places] = before.reshape(-1)[order], after.reshape(-1)[order]
    return moved


def _are_within(roundings, limits):
    # Not `>`, which is false for NaN.
    return all(
        rounding.distance <= limit
        for rounding, limit in zip(roundings, limits, strict=True)
    )


def _returning_levels(content: bytes) -> tuple[bytes, list[np.float32 | None]]:
    """Adds the input and the output of each ROUND to a file's outputs.

    Returns:
        The content of that file, and the number by which values are multiplied before
        each ROUND; None if there is none.
    """
    model = flatbuffer.read(content)
    factors: list[np.float32 | None] = []
    for graph in model.subgraphs:
        producers = {x: op for op in graph.operators for x in op.outputs}
        rounds = [
            operator
            for operator in graph.operators
            if flatbuffer.operator_name(model, operator) == "ROUND"
        ]
        factors += [_factor_before(model, graph, producers, x) for x in rounds]
        rounded = [x for op in rounds for x in (op.inputs[0], op.outputs[0])]
        graph.outputs = np.concatenate([graph.outputs, rounded]).astype(np.int32)
    # Signatures would hide outputs that they do not name.
    model.signatureDefs = []
    return flatbuffer.write(model), factors


def _factor_before(model, graph, producers, operator):
    """The number of the MUL before a ROUND, with bounds between them, or None."""
    (source,) = operator.inputs
    while (operator := producers.get(source)) is not None:
        name = flatbuffer.operator_name(model, operator)
        if name not in ("MUL", *_BOUNDS):
            return None
        numbers = {x: _number(model, graph.tensors[x]) for x in operator.inputs}
        if name == "MUL":
            return next((x for x in numbers.values() if x is not None), None)
        source = next(x for x, number in numbers.items() if number is None)
    return None


def _number(model, tensor):
    data = flatbuffer.constant(model, tensor)
    return data.view(np.float32)[0] if data is not None and data.size == 4 else None


def _on_given_levels(model: keras.Model, levels: Callable) -> keras.Model:
    """Copies a model; its activations get their levels from the function `levels`."""

    def replace(layer):
        if not isinstance(layer, layers.QuantizeActivation):
            return clone_layer(layer)
        return _GivenLevels.from_config(layer.get_config())

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        copy_weights(old, new)
        if isinstance(new, _GivenLevels):
            new.levels = levels
    return copy


class _GivenLevels(layers.QuantizeActivation):
    """`QuantizeActivation` that gets its levels from a function.

    Attributes:
        levels: function of this layer and of the exact values, a float32 array in
            levels; it returns the rounded ones. None while the graph is built.
    """

    levels: Callable | None = None

    def call(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return super().call(x)
        exact = ops.convert_to_numpy(ops.clip(x / self.scale, self.low, self.high))
        return ops.convert_to_tensor(self.levels(self, exact)) * self.scale
