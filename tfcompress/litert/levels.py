"""Comparing Keras and LiteRT on the same levels of quantized activations.

The two sum in another order, so that before a rounding they differ in the last bits.
A few activations land on neighbouring levels; each moves what comes behind it by
much more than float arithmetic does. Yet every operation can be proven: Keras
computes with the levels that LiteRT rounded to, and what both round has to agree.
"""

import keras
import numpy as np
from keras import ops

from tfcompress import layers
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import Runner


def has_quantized_activations(model):
    """Whether a Functional model has `QuantizeActivation` layers."""
    return any(
        isinstance(layer, layers.QuantizeActivation)
        for layer in Graph(model).layers().values()
    )


class SameLevels:
    """Runs a file, and Keras on the levels that the file rounds to.

    Args:
        content: a `.tflite` that LiteRT has loaded, bytes.
        model: the Functional model that it was exported from.
        tolerance: by how much values may differ before they are rounded, relative
            to the largest level.
    """

    def __init__(self, content, model, tolerance):
        self._runner = Runner(_returning_levels(content))
        self._count = len(keras.tree.flatten(model.output))
        self._model = _on_given_levels(model, self._levels)
        self._tolerance = tolerance
        self._pairs = []  # what the file rounds, and the levels it rounds that to
        self._distances = []  # of each call: (layer, distance)

    def __call__(self, batch):
        """Runs one batch, a list of one array per input.

        Returns:
            `(expected, received)`: Keras's and LiteRT's outputs, lists of arrays.

        Raises:
            ValueError: if the file does not round what Keras rounds; it names the
                first layer of which that is so.
        """
        results = self._runner(batch)
        received, rounded = results[: self._count], results[self._count :]
        self._pairs = list(zip(rounded[::2], rounded[1::2], strict=True))
        self._distances = []
        inputs = keras.tree.pack_sequence_as(self._model.input, batch)
        outputs = keras.tree.flatten(self._model(inputs, training=False))
        for layer, distance in self._distances:
            # Not `>`, which lets NaN pass.
            if not distance <= self._tolerance * layer.high:
                raise ValueError(
                    f"LiteRT should round what Keras rounds: '{layer.name}' within "
                    f"{self._tolerance * layer.high:.3g} levels. Received: a "
                    f"difference of {distance:.3g} levels at least. The file is not "
                    "this model's, or the runtime computes one of its operators "
                    "differently."
                )
        return [ops.convert_to_numpy(output) for output in outputs], received

    def _levels(self, layer, exact):
        """The file's levels for the values that a layer is to round.

        They are found by content: those of the closest values. `_distances` keeps
        how close they are, in levels, or how far from roundings.
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


def _returning_levels(content):
    """The same file, which also returns the input and output of each ROUND."""
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


def _on_given_levels(model, levels):
    """A copy of a model that asks `levels` for the levels of each activation."""

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
    """Is given its levels.

    Attributes:
        levels: function from this layer and the values it is to round, a float32
            array in levels, to their levels. None while the graph is built.
    """

    levels = None

    def call(self, x):
        if self.levels is None:
            return super().call(x)
        exact = ops.convert_to_numpy(ops.clip(x / self.scale, self.low, self.high))
        return ops.convert_to_tensor(self.levels(self, exact)) * self.scale
