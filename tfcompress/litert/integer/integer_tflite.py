"""Conversion of a finalized model to a `.tflite` that computes with integers only.

litert-quantizer makes the graph: int8 tensors between operators, with ranges from
representative data. The trained parameters then replace its own: codes and scales of
kernels, learned ranges of inputs, also of fewer bits, and the biases that follow.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers import PackedKernel, QuantizeActivation
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.integer.input_levels import Levels, Limits, levels_of, limits_of
from tfcompress.litert.integer.static_int8 import quantized_tflite
from tfcompress.litert.integer.tables import tables_by_output, write_tables
from tfcompress.litert.kernels import DATA_AND_BIAS, Kernel, Match, kernel_tensor
from tfcompress.litert.lowering.lowering import Lowering, Place
from tfcompress.litert.pack import find_kernels, rename

# Operators whose results are some of their inputs, in the same scale. Levels of what
# reads a result are levels of the input.
PASSING = ("MAX_POOL_2D", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE")
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
        it; and {"learned", "calibrated"}, the numbers of layers whose inputs have
        either range.

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
    plain = _without_quantized_inputs(model)
    file = flatbuffer.read(float_tflite(plain, batch_size))
    flatbuffer.make_names_unique(file)  # operators and ranges are found by name
    content = flatbuffer.write(file)
    trained = _TrainedOperators(content, kernels, _input_levels(model))
    calibrated = quantized_tflite(content, samples, trained.limits, float_ends)
    writer = _TrainedWriter(calibrated, trained)
    writer.run()
    rename(writer.model, *names)
    return writer.model, writer.places, trained.tables, writer.ranges


def _without_quantized_inputs(model: keras.Model) -> keras.Model:
    def replace(layer):
        if isinstance(layer, QuantizeActivation):
            return keras.layers.Identity(name=layer.name)
        return clone_layer(layer)

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        if not isinstance(old, QuantizeActivation):
            copy_weights(old, new)
    return copy


def _input_levels(model: keras.Model) -> dict[str, Levels]:
    """Returns `{packed layer's name: Levels}` of the layers with a quantized input."""
    graph, found = Graph(model), {}
    maker = {id(x): call.operation for call in graph.calls for x in call.outputs}
    for call in graph.calls:
        if isinstance(call.operation, PackedKernel):
            before = maker.get(id(call.inputs[0]))
            if isinstance(before, QuantizeActivation):
                found[call.name] = levels_of(before)
    return found


@dataclasses.dataclass(frozen=True)
class _TrainedOperator:
    """Trained parameters of one operator with a packed kernel.

    Attributes:
        match: `Match` of the kernel.
        bias: float32 array, (output channels,), or None.
        levels: `Levels` of the quantized input, or None without one.
    """

    match: Match
    bias: np.ndarray | None
    levels: Levels | None


class _TrainedOperators:
    """Trained parameters of all operators of a float file that read packed kernels.

    Attributes:
        by_output: `{name of the operator's output tensor, bytes: _TrainedOperator}`.
        tables: result of `tables_by_output`.

    Args:
        content: bytes of the float file.
        kernels: kernels to find in it.
        levels: `{layer's name: Levels}` of quantized inputs.
    """

    def __init__(
        self, content: bytes, kernels: Sequence[Kernel], levels: Mapping[str, Levels]
    ) -> None:
        self.by_output: dict[bytes, _TrainedOperator] = {}
        self._readers: dict[str, list[Levels | None]] = {}
        model = flatbuffer.read(content)
        decoded, read, tables = find_kernels(model, kernels)
        self.tables = tables_by_output(model, decoded + read + tables)
        matches = {
            (id(graph), index): found.in_container(8)
            for graph, index, found in decoded + read
        }
        for graph in model.subgraphs:
            for index in graph.outputs:
                self._add_reader(graph, index, None)
            for operator in reversed(graph.operators):  # readers of results come first
                name = flatbuffer.operator_name(model, operator)
                match = None
                if len(operator.inputs) > 1:
                    match = matches.get((id(graph), operator.inputs[1]))
                data, bias = _places(name, match)
                bound = levels.get(match.kernel.layer) if match else None
                for place, index in enumerate(operator.inputs):
                    found = [bound if place == data else None]
                    if name in PASSING and place == 0:
                        found = self._levels_of_readers(graph, operator.outputs[0])
                    for each in found:
                        self._add_reader(graph, index, each)
                if match:
                    output = graph.tensors[operator.outputs[0]].name
                    values = _float_bias(model, graph, operator, bias)
                    self.by_output[output] = _TrainedOperator(match, values, bound)

    def _levels_of_readers(self, graph, index):
        name = flatbuffer.tensor_name(graph.tensors[index])
        return self._readers.get(name) or [None]

    def _add_reader(self, graph, index, levels):
        if index >= 0:  # -1 stands for an optional input that is left out
            name = flatbuffer.tensor_name(graph.tensors[index])
            self._readers.setdefault(name, []).append(levels)

    def limits(self, name: str, low: float, high: float) -> Limits:
        """Returns `limits_of` the tensor with a name."""
        return limits_of(self._readers.get(name, []), low, high)


def _places(name, match):
    """Places of data and bias among the inputs of an operator that reads a kernel."""
    if match and name not in DATA_AND_BIAS:
        raise ValueError(
            "Layers with an integer form, such as Conv2D and Dense, are expected with "
            f"activations='int8'. Received: '{match.kernel.layer}', whose {name} has "
            "none. Export with activations='float'."
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
        ranges: {"learned", "calibrated"}, numbers of inputs with either range.

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
        # Indices of kernels, which several operators may read, by the `Match`'s id.
        self._kernels: dict[int, int] = {}

    def run(self) -> None:
        """Replaces the parameters of all operators."""
        for graph in self.model.subgraphs:
            self._graph = graph
            self._requantized.clear()
            self._kernels.clear()
            operators, graph.operators = graph.operators, []
            for operator in operators:
                output = graph.tensors[operator.outputs[0]].name
                if output in self._trained.by_output:
                    self._replace(operator, self._trained.by_output[output])
                graph.operators.append(operator)

    def _replace(self, operator, trained):
        name = flatbuffer.operator_name(self.model, operator)
        data, bias_place = DATA_AND_BIAS[name]
        source = operator.inputs[data]
        layer = trained.match.kernel.layer
        if self._graph.tensors[source].type != schema.TensorType.INT8:
            raise ValueError(
                f"The input of '{layer}' is expected in int8. Received: an operator "
                "that litert-quantizer leaves in float. Export with activations="
                "'float'."
            )
        if trained.levels is not None:
            source = self._on_levels(source, trained.levels)
        self.ranges["calibrated" if trained.levels is None else "learned"] += 1
        match = _with_scales_of_zeros(trained.match)
        key = id(trained.match)
        if key not in self._kernels:
            kernel = kernel_tensor(self.model, match)
            self._kernels[key] = flatbuffer.append_tensor(self._graph, kernel)
            self.places.append((self._graph, self._kernels[key], match))
        inputs = list(operator.inputs[:bias_place])
        inputs[data], inputs[1] = source, self._kernels[key]
        if trained.bias is not None:
            scale = self._scale(source)[0] * match.scale
            bias = self._bias_tensor(layer, trained.bias, scale)
            inputs.append(flatbuffer.append_tensor(self._graph, bias))
        operator.inputs = np.array(inputs, np.int32)

    def _on_levels(self, source: int, levels: Levels) -> int:
        """Returns the index of a tensor with the values of another on given levels."""
        for scale, zero_point in levels.grids():
            scale_now, zero_point_now = self._scale(source)
            if (
                zero_point_now == zero_point
                and abs(scale_now - scale) <= ROUNDING * scale
            ):
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

    def _bias_tensor(self, layer, bias, scale):
        codes = np.round(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0) >= 2**31:
            raise ValueError(
                f"The biases of '{layer}' should fit int32 in units of the input's and "
                f"the kernel's scale. Received: {np.abs(codes).max():.3g}. Export with "
                "activations='float'."
            )
        data = codes.astype("<i4").view(np.uint8)
        return schema.TensorT(
            shape=np.array(bias.shape, np.int32),
            hasRank=True,
            type=schema.TensorType.INT32,
            buffer=flatbuffer.append_buffer(self.model, data),
            quantization=_quantization(scale, np.zeros(len(scale), np.int64)),
        )


def _with_scales_of_zeros(match: Match) -> Match:
    """Gives channels of zeros, which have no scale of their own, the largest scale.

    Biases are counted in units of scales, and a small one could overflow int32.
    """
    others = tuple(axis for axis in range(match.codes.ndim) if axis != match.axis)
    used = match.codes.any(axis=others)
    largest = match.scale[used].max(initial=0.0) or 1.0
    scale = np.where(used, match.scale, np.float32(largest))
    return dataclasses.replace(match, scale=scale)


def _quantization(scale, zero_point):
    return schema.QuantizationParametersT(
        scale=np.asarray(scale, np.float32),
        zeroPoint=np.asarray(zero_point, np.int64),
        quantizedDimension=0,
    )
