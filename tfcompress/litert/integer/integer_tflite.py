"""Conversion of a finalized model to a `.tflite` that computes with integers only.

litert-quantizer makes the graph: int8 tensors between operators, with ranges from
representative data. The trained parameters then replace its own: codes and scales of
kernels, learned ranges of inputs, also of fewer bits, and the biases that follow.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.graph.levels.biases import with_room_for_biases
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.integer.input_levels import Levels, Limits, limits_of
from tfcompress.litert.integer.markers import (
    JOINING,
    PASSING,
    READING_NO_VALUES,
    Marks,
    marked,
    take_out,
)
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.integer.tables import tables_by_output, write_tables
from tfcompress.litert.kernels import DATA_AND_BIAS, Kernel, Match, kernel_tensor
from tfcompress.litert.lowering.lowering import Lowering, Place
from tfcompress.litert.pack import find_kernels, rename

# Operators whose results have the scale of their inputs, and those whose results have a
# scale of their own that no range decides.
SAME_SCALE = (
    *PASSING, *JOINING, "AVERAGE_POOL_2D", "MIRROR_PAD", "RESIZE_BILINEAR", "SPLIT",
    "UNPACK", "GATHER", "BROADCAST_TO",
)  # fmt: skip
FIXED_SCALE = ("SOFTMAX", "LOGISTIC", "TANH")
# Largest relative difference of equal scales: the quantizer computes them from limits.
ROUNDING = 1e-5


def integer_tflite(
    model: keras.Model,
    kernels: Sequence[Kernel],
    samples: Iterable[Sequence[np.ndarray]],
    names: tuple[Sequence[str], Sequence[str]],
    float_ends: bool,
    lowering: Lowering,
) -> tuple[bytes, list[Match], dict[str, int]]:
    """Makes the integer file of a finalized model.

    Args:
        model: a Functional model with packed layers.
        kernels: its kernels.
        samples: batches of representative inputs, lists of arrays.
        names: `(input names, output names)`.
        float_ends: bool. Whether inputs and outputs are float32, or int8 as well.
        lowering: choice of the operators and containers of kernels.

    Returns:
        `(content, matches, ranges)`: the file's bytes; the `Match` of each kernel in
        it; and {"learned", "calibrated"}, the numbers of int8 tensors with either
        range. Tensors whose scale is that of an operator's input, or prescribed by
        the operator, are not counted.

    Raises:
        ImportError: if litert-quantizer is not installed.
        ValueError: if a kernel is not in the converted graph, or cannot be computed
            with integers.
    """
    file, places, tables, ranges = integer_graph(
        model, kernels, samples, names, float_ends
    )
    matches = lowering.apply(file, places) + write_tables(file, tables)
    flatbuffer.strip(file)
    return flatbuffer.write(file), matches, ranges


def integer_graph(
    model: keras.Model,
    kernels: Sequence[Kernel],
    samples: Iterable[Sequence[np.ndarray]],
    names: tuple[Sequence[str], Sequence[str]],
    float_ends: bool,
    batch_size: int | None = None,
) -> tuple[schema.ModelT, list[Place], dict[bytes, Match], dict[str, int]]:
    """Makes the same file with all kernels in INT8 and the names of all tensors.

    Args:
        model, kernels, samples, names, float_ends: as `integer_tflite` takes them.
        batch_size: int. Batch that the file is to take, or None for the model's.

    Returns:
        `(file, places, tables, ranges)`: the parsed file; its kernels; the result of
        `tables_by_output`, for tables that are still to be written; and the ranges.
    """
    plain, levels = marked(model)
    file = flatbuffer.read(float_tflite(plain, batch_size))
    flatbuffer.make_names_unique(file)  # operators and ranges are found by name
    marks = take_out(file, levels)
    content = flatbuffer.write(file)
    trained = _TrainedOperators(content, kernels, marks)
    calibrated = quantized_tflite(content, samples, trained.limits, float_ends)
    writer = _TrainedWriter(calibrated, trained)
    writer.run()
    rename(writer.model, *names)
    return writer.model, writer.places, trained.tables, writer.ranges


@dataclasses.dataclass(frozen=True)
class _TrainedOperator:
    """Trained parameters of one operator with a packed kernel.

    Attributes:
        match: `Match` of the kernel.
        bias: float32 array, (output channels,), or None.
    """

    match: Match
    bias: np.ndarray | None


class _TrainedOperators:
    """Trained parameters of all operators of a float file.

    Attributes:
        by_output: `{name of the operator's output tensor, bytes: _TrainedOperator}` of
            those that read packed kernels.
        tables: result of `tables_by_output`.
        inputs: `{(name of the operator's output tensor, place of the input): Levels}`.
        made: see `Marks`.
        learned: names of the tensors whose steps are trained ones, or parts of these.

    Args:
        content: bytes of the float file.
        kernels: kernels to find in it.
        marks: `Marks` of the file.
    """

    def __init__(self, content: bytes, kernels: Sequence[Kernel], marks: Marks) -> None:
        self.by_output: dict[bytes, _TrainedOperator] = {}
        self.inputs = marks.read
        self.made = marks.made
        self.learned: set[str] = set()
        self._readers: dict[str, list[Levels | None]] = {}
        model = flatbuffer.read(content)
        decoded, read, tables = find_kernels(model, kernels)
        self.tables = tables_by_output(model, decoded + read + tables)
        matches = {
            (id(graph), index): found.in_container(8)
            for graph, index, found in decoded + read
        }
        for number, graph in enumerate(model.subgraphs):
            for place, index in enumerate(graph.outputs):
                self._add_reader(graph, index, marks.returned.get((number, place)))
            for operator in reversed(graph.operators):  # readers of results come first
                match = None
                if len(operator.inputs) > 1:
                    match = matches.get((id(graph), operator.inputs[1]))
                self._add(model, graph, operator, match)

    def _add(self, model, graph, operator, match):
        name = flatbuffer.operator_name(model, operator)
        if name in READING_NO_VALUES:
            return
        output = graph.tensors[operator.outputs[0]].name
        _, bias = _places(name, match)
        for place, index in enumerate(operator.inputs):
            found = [self.inputs.get((output, place))]
            if name in PASSING and place == 0:
                found = self._levels_of_readers(graph, operator.outputs[0])
            for each in found:
                self._add_reader(graph, index, each)
        if match:
            values = _float_bias(model, graph, operator, bias)
            self.by_output[output] = _TrainedOperator(match, values)

    def _levels_of_readers(self, graph, index):
        name = flatbuffer.tensor_name(graph.tensors[index])
        return self._readers.get(name) or [None]

    def _add_reader(self, graph, index, levels):
        if index >= 0:  # -1 stands for an optional input that is left out
            name = flatbuffer.tensor_name(graph.tensors[index])
            self._readers.setdefault(name, []).append(levels)

    def limits(self, name: str, low: float, high: float) -> Limits:
        """Returns the limits of the tensor with a name, see `limits_of`."""
        readers: list[Levels | None] = self._readers.get(name, [])
        if name.encode() in self.made:
            readers = [self.made[name.encode()]]
        chosen = limits_of(readers, low, high)
        of_levels = all(readers) and len(set(readers)) == 1
        if of_levels or (any(readers) and chosen != (low, high)):
            self.learned.add(name)
        return chosen


def _places(name, match):
    """Places of data and bias among the inputs of an operator that reads a kernel."""
    if match and name not in DATA_AND_BIAS:
        raise ValueError(
            "Layers with an integer form, such as Conv2D and Dense, are expected with "
            f"activations='int8'. Received: '{match.kernel.layer}', whose {name} has "
            "none. Export with target='litert' and activations='float'."
        )
    return DATA_AND_BIAS.get(name, (0, 2))


def _float_bias(model, graph, operator, place):
    if len(operator.inputs) <= place or operator.inputs[place] < 0:
        return None
    bias = graph.tensors[operator.inputs[place]]
    return flatbuffer.constant(model, bias).view("float32")


class _TrainedWriter:
    """Writer of trained parameters into the quantizer's file.

    Attributes:
        model: the parsed file.
        places: list of `(graph, tensor index, Match)` of each kernel written.
        ranges: {"learned", "calibrated"}, numbers of tensors with either range.

    Args:
        content: bytes of the quantizer's file.
        trained: parameters by operator.
    """

    def __init__(self, content: bytes, trained: _TrainedOperators) -> None:
        self.model = flatbuffer.read(content)
        self.places: list[tuple[schema.SubGraphT, int, Match]] = []
        self.ranges = {"learned": 0, "calibrated": 0}
        self._trained = trained
        self._graph: schema.SubGraphT = None
        # Indices of tensors on given levels, which several operators may read:
        # `{(index of the tensor before, scale, zero point): index}`.
        self._requantized: dict[tuple[int, float, int], int] = {}
        # Indices of kernels, which several operators may read, by the `Match`'s id and
        # the bytes of the scales.
        self._kernels: dict[tuple[int, bytes], int] = {}

    def run(self) -> None:
        """Replaces the parameters of all operators."""
        for graph in self.model.subgraphs:
            self._graph = graph
            self._requantized.clear()
            self._kernels.clear()
            operators, graph.operators = graph.operators, []
            for tensor in graph.tensors:
                self._make_exact(tensor)
            for index in graph.inputs:
                self._count(index)
            for operator in operators:
                self._keep_scale(operator)
                output = graph.tensors[operator.outputs[0]].name
                self._put_on_levels(operator, output)
                if output in self._trained.by_output:
                    self._replace(operator, self._trained.by_output[output])
                graph.operators.append(operator)
                name = flatbuffer.operator_name(self.model, operator)
                if name not in SAME_SCALE + FIXED_SCALE:
                    self._count(operator.outputs[0])

    def _make_exact(self, tensor):
        """Sets a scale that the quantizer computed from limits to the trained one."""
        levels = self._trained.made.get(tensor.name)
        if levels is not None and flatbuffer.has_int8_codes(tensor):
            scale, zero_point = levels.grids()[0]
            if _is_on(tensor, scale, zero_point):
                tensor.quantization.scale = np.array([scale], np.float32)

    def _keep_scale(self, operator):
        """Sets scales that are equal up to rounding equal, as UNPACK wants them."""
        if flatbuffer.operator_name(self.model, operator) not in SAME_SCALE:
            return
        inputs, outputs = (
            [self._graph.tensors[i] for i in indices if i >= 0]
            for indices in (operator.inputs, operator.outputs)
        )
        sources = [x for x in inputs if flatbuffer.has_int8_codes(x)]
        for tensor in outputs:
            has_codes = flatbuffer.has_int8_codes(tensor)
            if sources and has_codes and tensor.name not in self._trained.made:
                found = sources[0].quantization
                if _is_on(tensor, found.scale[0], found.zeroPoint[0]):
                    tensor.quantization.scale = found.scale[:1].copy()

    def _count(self, index):
        """Counts an int8 tensor whose range was chosen."""
        tensor = self._graph.tensors[index]
        if flatbuffer.has_int8_codes(tensor):
            is_learned = flatbuffer.tensor_name(tensor) in self._trained.learned
            self.ranges["learned" if is_learned else "calibrated"] += 1

    def _put_on_levels(self, operator, output):
        """Lets an operator read its inputs on the levels that the model has there."""
        name = flatbuffer.operator_name(self.model, operator)
        if name in SAME_SCALE:
            return
        inputs = list(operator.inputs)
        for place, index in enumerate(inputs):
            levels = self._trained.inputs.get((output, place))
            if levels is not None and flatbuffer.has_int8_codes(
                self._graph.tensors[index]
            ):
                inputs[place] = self._on_levels(index, levels)
        operator.inputs = np.array(inputs, np.int32)

    def _replace(self, operator, trained):
        name = flatbuffer.operator_name(self.model, operator)
        data, bias_place = DATA_AND_BIAS[name]
        source = operator.inputs[data]
        layer = trained.match.kernel.layer
        if not flatbuffer.has_int8_codes(self._graph.tensors[source]):
            raise ValueError(
                f"The input of '{layer}' is expected in int8. Received: an operator "
                "that litert-quantizer leaves in float. Export with target='litert' "
                "and activations='float'."
            )
        step = self._scale(source)[0]
        match = _with_room_for_biases(trained.match, trained.bias, step)
        key = id(trained.match), match.scale.tobytes()
        if key not in self._kernels:
            kernel = kernel_tensor(self.model, match)
            self._kernels[key] = flatbuffer.append_tensor(self._graph, kernel)
            self.places.append((self._graph, self._kernels[key], match))
        inputs = list(operator.inputs[:bias_place])
        inputs[data], inputs[1] = source, self._kernels[key]
        if trained.bias is not None:
            bias = self._bias_tensor(trained.bias, step * match.scale)
            inputs.append(flatbuffer.append_tensor(self._graph, bias))
        operator.inputs = np.array(inputs, np.int32)

    def _on_levels(self, source: int, levels: Levels) -> int:
        """Returns the index of a tensor with the values of another on given levels."""
        for scale, zero_point in levels.grids():
            if _is_on(self._graph.tensors[source], scale, zero_point):
                continue
            key = source, float(scale), zero_point
            if key not in self._requantized:
                tensor = flatbuffer.computed_tensor(
                    self._graph.tensors[source], schema.TensorType.INT8
                )
                tensor.quantization = _quantization([scale], [zero_point])
                target = flatbuffer.append_tensor(self._graph, tensor)
                self._requantized[key] = target
                self._graph.operators.append(
                    flatbuffer.operator(self.model, "QUANTIZE", source, target)
                )
            source = self._requantized[key]
        return source

    def _scale(self, index):
        quantization = self._graph.tensors[index].quantization
        return quantization.scale[0], quantization.zeroPoint[0]

    def _bias_tensor(self, bias, scale):
        codes = np.round(bias.astype(np.float64) / scale)
        data = codes.astype("<i4").view(np.uint8)
        return schema.TensorT(
            shape=np.array(bias.shape, np.int32),
            hasRank=True,
            type=schema.TensorType.INT32,
            buffer=flatbuffer.append_buffer(self.model, data),
            quantization=_quantization(scale, np.zeros(len(scale), np.int64)),
        )


def _is_on(tensor, scale, zero_point):
    """Whether a tensor has a scale, up to rounding, and a zero point."""
    found = tensor.quantization
    has_scale = abs(found.scale[0] - scale) <= ROUNDING * scale
    return has_scale and found.zeroPoint[0] == zero_point


def _with_room_for_biases(match: Match, bias: np.ndarray | None, step: float) -> Match:
    """Gives a kernel scales in whose units the biases fit int32."""
    axes = tuple(axis for axis in range(match.codes.ndim) if axis != match.axis)
    codes, scale = with_room_for_biases(
        match.codes, np.expand_dims(match.scale, axes), bias, float(step), axes
    )
    return dataclasses.replace(match, codes=codes, scale=scale.reshape(-1))


def _quantization(scale, zero_point):
    return schema.QuantizationParametersT(
        scale=np.asarray(scale, np.float32),
        zeroPoint=np.asarray(zero_point, np.int64),
        quantizedDimension=0,
    )
