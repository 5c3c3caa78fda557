"""From a finalized model to a `.tflite` that computes with integers throughout.

`litert-quantizer` makes the graph: int8 tensors between operators, with ranges from
representative data. What was trained then takes its place: codes and scales of the
kernels, and learned ranges of layers' inputs, also of fewer bits; biases follow.
"""

import dataclasses
import math

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import PackedKernel, QuantizeActivation
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.kernels import NATIVE_BITS
from tfcompress.litert.pack import find_kernels, kernel_tensor, rename

LOW, HIGH = -128, 127
# Relative. Scales that go through a range of the quantizer come back nearly.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Levels:
    """Where the levels of a quantized input lie in int8.

    A level is a whole number of steps. With less than 8 bits int8 would not stop at the
    last level, so that values pass a finer grid first.

    Attributes:
        scale: of a level, float.
        zero_point: of both grids.
        fine: steps of the finer grid to a level; 1 if there is none. It is odd, so that
            rounding twice is rounding once.
    """

    scale: float
    zero_point: int
    fine: int

    def grids(self):
        """`(scale, zero point)` of each grid that values pass, the finest first."""
        grids = [(np.float32(self.scale / self.fine), self.zero_point)]
        if self.fine > 1:
            grids.append((np.float32(self.scale), self.zero_point))
        return grids

    def limits(self):
        """The least and the largest value on the first of the grids."""
        scale, zero_point = self.grids()[0]
        return tuple(scale * (x - zero_point) for x in (LOW, HIGH))

    def needs(self):
        """The same, less what rounds to the outermost levels in any case."""
        low, high = self.limits()
        return min(0.0, low + 0.4 * self.scale), high - 0.4 * self.scale


def levels_of(layer):
    """The `Levels` of a `QuantizeActivation`.

    Raises:
        ValueError: if no finer grid ends within half a step of its last levels.
    """
    scale = float(keras.ops.convert_to_numpy(layer.scale))
    zero_point = 0 if layer.signed else LOW
    if layer.bits == 8:  # signed levels have -128 beside them
        return Levels(scale, zero_point, 1)
    low, high = LOW - zero_point, HIGH - zero_point
    for fine in range(1, 256, 2):
        if abs(high / fine - layer.high) < 0.5 and abs(low / fine - layer.low) < 0.5:
            return Levels(scale, zero_point, fine)
    raise ValueError(
        "Inputs of 2, 3, 4 or 8 bits can be computed with int8. Received: "
        f"{layer.bits} bits in '{layer.name}'. Export with activations='float'."
    )


def limits_of(readers, low, high):
    """`(min, max)` of an int8 tensor that has `(low, high)` in the samples.

    Where all that read it agree on its levels, these. Where others read it too, a level
    is an odd number of steps, so that rounding to steps and then to levels is rounding
    once; unless the tensor then ends too early.

    Args:
        readers: the `Levels` of each layer that reads it, or None of one without.
    """
    bound = [levels for levels in readers if levels is not None]
    if not bound:
        return low, high
    if all(levels == bound[0] for levels in readers):
        return bound[0].limits()
    needs = [levels.needs() for levels in bound]
    if len(bound) < len(readers):
        needs.append((min(low, 0.0), high))
    least, most = min(x for x, _ in needs), max(x for _, x in needs)
    for fine in range(bound[0].fine, 0, -2):
        step = bound[0].scale / fine
        zero_point = max(LOW, math.ceil(LOW - least / step))
        if (HIGH - zero_point) * step >= most:
            return tuple(step * (x - zero_point) for x in (LOW, HIGH))
    return low, high


def integer_tflite(model, kernels, samples, names, float_ends):
    """Makes the integer file of a finalized model.

    Args:
        model: a Functional model with packed layers.
        kernels: list of its `Kernel`.
        samples: iterable of batches of representative inputs, lists of arrays.
        names: `(input names, output names)`.
        float_ends: whether its inputs and outputs are float32, or int8 as well.

    Returns:
        `(content, matches, ranges)`: the file's bytes; the `Match` of each kernel in
        it; and {"learned", "calibrated"}, how many tensors' ranges come from where.

    Raises:
        ImportError: if litert-quantizer is not installed.
        ValueError: if a kernel is not in the converted graph, or cannot be computed
            with integers.
    """
    content = float_tflite(_without_quantized_inputs(model))
    planned = _Plan(content, model, kernels)
    calibrated = quantized_tflite(content, samples, planned.limits, float_ends)
    edited = _Edited(calibrated, planned)
    edited.run(names)
    return edited.content(), edited.matches, edited.ranges


def _without_quantized_inputs(model):
    def replace(layer):
        if isinstance(layer, QuantizeActivation):
            return keras.layers.Identity(name=layer.name)
        return clone_layer(layer)

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if not isinstance(old, QuantizeActivation):
            copy_weights(old, new)
    return copy


class _Plan:
    """What each operator with a kernel of ours is to compute with.

    Attributes:
        of: `{name of the operator's output tensor: (Match, bias or None, Levels or
            None)}`.
    """

    def __init__(self, content, model, kernels):
        levels = _levels(model)
        parsed = flatbuffer.read(content)
        self.of, self._readers = {}, {}
        places = {
            (id(g), i): m for g, i, m in find_kernels(parsed, kernels, native=True)
        }
        for graph in parsed.subgraphs:
            for operator in graph.operators:
                found = None
                if flatbuffer.operator_name(parsed, operator) in NATIVE_BITS:
                    found = places.get((id(graph), operator.inputs[1]))
                bound = levels.get(found.kernel.layer) if found else None
                for place, index in enumerate(operator.inputs):
                    if index >= 0:
                        name = graph.tensors[index].name.decode()
                        reader = bound if place == 0 else None
                        self._readers.setdefault(name, []).append(reader)
                if found:
                    bias = _float_bias(parsed, graph, operator)
                    output = graph.tensors[operator.outputs[0]].name
                    self.of[output] = found, bias, bound
            for index in graph.outputs:
                name = graph.tensors[index].name.decode()
                self._readers.setdefault(name, []).append(None)

    def limits(self, name, low, high):
        """`limits_of` a tensor."""
        return limits_of(self._readers.get(name, []), low, high)


def _levels(model):
    """`{packed layer's name: Levels}` of those with a quantized input."""
    graph, found = Graph(model), {}
    maker = {id(x): call.operation for call in graph.calls for x in call.outputs}
    for call in graph.calls:
        if isinstance(call.operation, PackedKernel):
            before = maker.get(id(call.inputs[0]))
            if isinstance(before, QuantizeActivation):
                found[call.name] = levels_of(before)
    return found


def _float_bias(model, graph, operator):
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return None
    return flatbuffer.constant(model, graph.tensors[operator.inputs[2]]).view("float32")


class _Edited:
    """The quantizer's file with what was trained in it."""

    def __init__(self, content, planned):
        self._model = flatbuffer.read(content)
        self._planned = planned
        self.matches = []
        self.ranges = {"learned": 0, "calibrated": 0}

    def content(self):
        flatbuffer.strip(self._model)
        return flatbuffer.write(self._model)

    def run(self, names):
        for graph in self._model.subgraphs:
            self._graph, self._requantized = graph, {}
            operators, graph.operators = graph.operators, []
            for operator in operators:
                output = graph.tensors[operator.outputs[0]].name
                if output in self._planned.of:
                    self._use(operator, *self._planned.of[output])
                graph.operators.append(operator)
        rename(self._model, *names)

    def _use(self, operator, found, bias, levels):
        source = operator.inputs[0]
        layer = found.kernel.layer
        if self._graph.tensors[source].type != schema.TensorType.INT8:
            raise ValueError(
                f"The input of '{layer}' is expected in int8. Received: an operator "
                "that litert-quantizer leaves in float. Export with activations="
                "'float'."
            )
        if levels is not None:
            source = self._on_levels(source, levels)
        self.ranges["calibrated" if levels is None else "learned"] += 1
        found = _with_sound_scales(found)
        self.matches.append(found)
        inputs = [
            source,
            flatbuffer.append_tensor(self._graph, kernel_tensor(self._model, found)),
        ]
        if bias is not None:
            scale = self._scale(source)[0] * found.scale
            inputs.append(
                flatbuffer.append_tensor(self._graph, self._bias(layer, bias, scale))
            )
        operator.inputs = np.array(inputs, np.int32)

    def _on_levels(self, source, levels):
        """The index of a tensor with the values of another on given levels."""
        for scale, zero_point in levels.grids():
            now, zero_now = self._scale(source)
            if zero_now == zero_point and abs(now - scale) <= ROUNDING * scale:
                continue
            key = source, float(scale), zero_point
            if key not in self._requantized:
                tensor = flatbuffer.computed_tensor(
                    self._graph.tensors[source], schema.TensorType.INT8
                )
                tensor.quantization = _quantization([scale], [zero_point])
                self._requantized[key] = flatbuffer.append_tensor(self._graph, tensor)
                self._graph.operators.append(
                    flatbuffer.operator(
                        self._model, "QUANTIZE", source, self._requantized[key]
                    )
                )
            source = self._requantized[key]
        return source

    def _scale(self, index):
        quantization = self._graph.tensors[index].quantization
        return quantization.scale[0], quantization.zeroPoint[0]

    def _bias(self, layer, bias, scale):
        codes = np.round(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0) >= 2**31:
            raise ValueError(
                f"The biases of '{layer}' should fit int32 in units of the input's and "
                f"the kernel's scale. Received: {np.abs(codes).max():.3g}. Export with "
                "activations='float'."
            )
        data = codes.astype("<i4").view(np.uint8)
        self._model.buffers.append(schema.BufferT(data=data))
        return schema.TensorT(
            shape=np.array(bias.shape, np.int32),
            hasRank=True,
            type=schema.TensorType.INT32,
            buffer=len(self._model.buffers) - 1,
            quantization=_quantization(scale, np.zeros(len(scale), np.int64)),
        )


def _with_sound_scales(found):
    """A `Match` in which channels of zeros, of no scale of their own, have a large one.

    Biases are counted in units of scales.
    """
    others = tuple(axis for axis in range(found.codes.ndim) if axis != found.axis)
    used = found.codes.any(axis=others)
    largest = found.scale[used].max(initial=0.0) or 1.0
    scale = np.where(used, found.scale, np.float32(largest))
    return dataclasses.replace(found, scale=scale)


def _quantization(scale, zero_point):
    return schema.QuantizationParametersT(
        scale=np.asarray(scale, np.float32),
        zeroPoint=np.asarray(zero_point, np.int64),
        quantizedDimension=0,
    )
