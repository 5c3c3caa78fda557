"""Comparison of Keras and LiteRT on the same levels of quantized activations.

Keras and LiteRT sum in different orders, so that values differ in the last bits before
they are rounded. A few activations then land on neighbouring levels. Each moves later
values by much more than float arithmetic does. Every operation can be proven all the
same: Keras computes with the levels that LiteRT rounded to, and the two must agree on
the values before each rounding.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from tfcompress import layers
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import Runner
from tfcompress.types import Tensor


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
        tolerance: float. Largest difference of values before they are rounded,
            relative to the largest level.
    """

    def __init__(self, content: bytes, model: keras.Model, tolerance: float) -> None:
        self._runner = Runner(_returning_levels(content))
        self._count = len(keras.tree.flatten(model.output))
        self._model = _on_given_levels(model, self._levels)
        self._tolerance = tolerance
        # Inputs and outputs of the file's roundings, for one batch.
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        # Each call's layer, and its distance from the closest of them, in levels.
        self._distances: list[tuple[_GivenLevels, float]] = []

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
        self._distances = []
        inputs = keras.tree.pack_sequence_as(self._model.input, batch)
        outputs = keras.tree.flatten(self._model(inputs, training=False))
        for layer, distance in self._distances:
            # Not `>`, which is false for NaN.
            if not distance <= self._tolerance * layer.high:
                raise ValueError(
                    f"LiteRT should round what Keras rounds: '{layer.name}' within "
                    f"{self._tolerance * layer.high:.3g} levels. Received: a "
                    f"difference of {distance:.3g} levels at least. The file is not "
                    "this model's, or the runtime computes one of its operators "
                    "differently."
                )
        return [ops.convert_to_numpy(output) for output in outputs], received

    def _levels(self, layer: "_GivenLevels", exact: np.ndarray) -> np.ndarray:
        """Returns the file's levels for the values that a layer is to round.

        The rounding of the file with the closest values is taken. `_distances` gets
        the largest difference from them, or from a correct rounding, in levels.
        """
        best, levels = np.inf, exact
        for pair in self._pairs:
            if pair[0].size != exact.size:
                continue
            before, after = (array.reshape(exact.shape) for array in pair)
            distance = np.abs(before - exact).max()
            distance = max(distance, np.abs(after - before).max() - 0.5)
            if distance < best:
                best, levels = distance, after
        self._distances.append((layer, best))
        return levels


def _returning_levels(content: bytes) -> bytes:
    """Adds the input and the output of each ROUND to a file's outputs."""
    model = flatbuffer.read(content)
    for graph in model.subgraphs:
        rounded = [
            index
            for operator in graph.operators
            if flatbuffer.operator_name(model, operator) == "ROUND"
            for index in (operator.inputs[0], operator.outputs[0])
        ]
        graph.outputs = np.concatenate([graph.outputs, rounded]).astype(np.int32)
    # Signatures would hide outputs that they do not name.
    model.signatureDefs = []
    return flatbuffer.write(model)


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
