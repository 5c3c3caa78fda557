"""From a finalized model to a `.tflite` that computes with integers throughout.

`litert-quantizer` makes the graph: int8 tensors between operators, with ranges from
representative data. What was trained then takes its place: codes and scales of the
kernels, and learned ranges of layers' inputs, also of fewer bits; biases follow.
"""

import contextlib
import dataclasses
import io
import warnings

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.layers import PackedKernel, QuantizeActivation
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.kernels import KERNEL_READERS
from tfcompress.litert.pack import find_kernels, kernel_tensor, rename
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.rebuild import clone_layer, copy_weights, rebuild

LOW, HIGH = -128, 127
# Representative samples that are enough.
SAMPLES = 256
# Tensors that vary less are as good as constant, and no unit to count biases in.
LEAST_RANGE = 1e-6
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


def integer_tflite(model, kernels, samples, names):
    """Makes the integer file of a finalized model.

    Args:
        model: a Functional model with packed layers.
        kernels: list of its `Kernel`, with 8 bits.
        samples: iterable of batches of representative inputs, lists of arrays.
        names: `(input names, output names)`.

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
    calibrated = _quantized(content, samples, planned.ranges())
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
        places = {(id(g), i): m for g, i, m in find_kernels(parsed, kernels)}
        for graph in parsed.subgraphs:
            for operator in graph.operators:
                found = None
                if flatbuffer.operator_name(parsed, operator) in KERNEL_READERS:
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
                self._readers.setdefault(graph.tensors[index].name.decode(), [None])

    def ranges(self):
        """`{tensor name: (min, max)}` where all that read it agree on its levels."""
        ranges = {}
        for name, readers in self._readers.items():
            if readers[0] is not None and all(x == readers[0] for x in readers):
                scale, zero_point = readers[0].grids()[0]
                ranges[name] = tuple(scale * (x - zero_point) for x in (LOW, HIGH))
        return ranges


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


def _quantized(content, samples, ranges):
    """The file with int8 tensors and kernels, as litert-quantizer makes it."""
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError as error:
        raise ImportError(
            "activations='int8' needs the package litert-quantizer. Install "
            "`tfcompress[int8]`."
        ) from error
    engine = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    signature = "serving_default"
    rows = [
        {f"input_{i}": array[row : row + 1] for i, array in enumerate(batch)}
        for batch in samples
        for row in range(len(batch[0]))
    ]
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).astype(int)
    with _quiet():
        found = engine.calibrate({signature: [rows[i] for i in chosen]})
        for name, limits in found.items():
            if np.max(limits["max"]) - np.min(limits["min"]) < LEAST_RANGE:
                limits["max"] = np.full_like(limits["max"], 1.0)  # any will do
            for key, value in zip(("min", "max"), ranges.get(name, ()), strict=False):
                limits[key] = np.full_like(limits[key], value)
        return bytes(engine.quantize(found).quantized_model)


@contextlib.contextmanager
def _quiet():
    """Keeps progress and statistics off the terminal, and warnings about debugging."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


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
        self._take_and_return_floats()
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
        inputs = [source, self._append(kernel_tensor(self._model, found))]
        if bias is not None:
            scale = self._scale(source)[0] * found.scale
            inputs.append(self._append(self._bias(layer, bias, scale)))
        operator.inputs = np.array(inputs, np.int32)

    def _on_levels(self, source, levels):
        """The index of a tensor with the values of another on given levels."""
        for scale, zero_point in levels.grids():
            now, zero_now = self._scale(source)
            if zero_now == zero_point and abs(now - scale) <= ROUNDING * scale:
                continue
            key = source, float(scale), zero_point
            if key not in self._requantized:
                tensor = self._like(source, schema.TensorType.INT8)
                tensor.quantization = _quantization([scale], [zero_point])
                self._requantized[key] = self._append(tensor)
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

    def _take_and_return_floats(self):
        """Puts float32 in front of int8 inputs, and behind int8 outputs."""
        (signature,) = self._model.signatureDefs
        graph = self._graph = self._model.subgraphs[signature.subgraphIndex]
        for entry in signature.inputs:
            inner = entry.tensorIndex
            if graph.tensors[inner].type == schema.TensorType.INT8:
                entry.tensorIndex = self._append(
                    self._like(inner, schema.TensorType.FLOAT32)
                )
                graph.operators.insert(
                    0,
                    flatbuffer.operator(
                        self._model, "QUANTIZE", entry.tensorIndex, inner
                    ),
                )
        for entry in signature.outputs:
            inner = entry.tensorIndex
            if graph.tensors[inner].type == schema.TensorType.INT8:
                entry.tensorIndex = self._append(
                    self._like(inner, schema.TensorType.FLOAT32)
                )
                graph.operators.append(
                    flatbuffer.operator(
                        self._model, "DEQUANTIZE", inner, entry.tensorIndex
                    )
                )

    def _like(self, index, tensor_type):
        """A new computed tensor of another one's shape."""
        other = self._graph.tensors[index]
        return schema.TensorT(
            shape=other.shape,
            shapeSignature=other.shapeSignature,
            hasRank=other.hasRank,
            type=tensor_type,
            buffer=0,
        )

    def _append(self, tensor):
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


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
