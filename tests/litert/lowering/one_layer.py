"""Files of one operator that reads a kernel of integers, made by hand."""

import dataclasses

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import Kernel, Match, kernel_tensor
from tfcompress.litert.lowering.dense import DenseWriter
from tfcompress.litert.lowering.reader import readers

INPUT_SCALE, OUTPUT_SCALE = 0.05, 0.4
T = schema.TensorType


@dataclasses.dataclass(frozen=True)
class OneLayer:
    """A layer, as the operator that computes it.

    Attributes:
        operator: "CONV_2D", "DEPTHWISE_CONV_2D" or "FULLY_CONNECTED".
        shape: shape of the input with the batch.
        filters: int. Output channels, ignored by depthwise convolutions.
        window, stride, dilation: (height, width).
        padding: "SAME" or "VALID".
        bits: int. Bits of the codes: 2, 4 or 8.
        decoded: bool. Whether the kernel is float.
        int8: bool. Whether input and output are int8.
        zero_point: int. Zero point of an int8 input.
        activation: member of `schema.ActivationFunctionType`.
        bias: bool.
        free: axes of the input whose size is free.
        groups: int. Groups of channels.
    """

    operator: str
    shape: tuple[int, ...]
    filters: int
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    bits: int = 4
    decoded: bool = False
    int8: bool = True
    zero_point: int = 0
    activation: int = 0
    bias: bool = True
    free: tuple[int, ...] = ()
    groups: int = 1


def made(layer, seed=0):
    """Returns `(model, Match)` of a layer with random codes, in an INT8 kernel."""
    rng = np.random.default_rng(seed)
    model = schema.ModelT(version=3, buffers=[schema.BufferT()], operatorCodes=[])
    graph = schema.SubGraphT(tensors=[], operators=[])
    model.subgraphs = [graph]
    shape = _kernel_shape(layer)
    depthwise = layer.operator == "DEPTHWISE_CONV_2D"
    axis = len(shape) - 1 if depthwise else 0
    channels = shape[axis]
    largest = {2: 1, 4: 7}.get(layer.bits, 127)
    codes = rng.integers(-largest, largest + 1, shape).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, channels).astype(np.float32)
    ordered = np.moveaxis(codes, axis, -1).reshape(-1, channels)
    found = Match(Kernel("layer", ordered, scale, 8), axis, codes, scale, False)
    source = _activation(graph, layer, layer.shape, INPUT_SCALE, layer.zero_point)
    output = (*_output_sizes(layer), channels)
    target = _activation(graph, layer, output, OUTPUT_SCALE, -3)
    if layer.decoded:
        lengths = [-1 if i == axis else 1 for i in range(len(shape))]
        values = codes * scale.reshape(lengths)
        kernel = _constant(model, graph, values.astype("<f4"), T.FLOAT32)
    else:
        kernel = flatbuffer.append_tensor(graph, kernel_tensor(model, found))
    inputs = [source, kernel]
    if layer.bias:
        inputs.append(_bias(model, graph, layer, scale, rng))
    operator = flatbuffer.operator(model, layer.operator, source, target, 5)
    operator.inputs = np.array(inputs, np.int32)
    operator.builtinOptionsType, operator.builtinOptions = _options(layer)
    graph.operators = [operator]
    graph.inputs, graph.outputs = (np.array([i], np.int32) for i in (source, target))
    return model, found


def as_dense(model, found, bits):
    """Returns the content of a file whose layer is FULLY_CONNECTED of some bits."""
    (graph,) = model.subgraphs
    (reader,) = readers(model, graph, {})
    graph.operators = DenseWriter(model, graph).operators(reader)
    found = found.in_container(bits, as_matrix=True)
    graph.tensors[reader.kernel] = kernel_tensor(model, found)
    return flatbuffer.write(model)


def random_input(layer, seed=1):
    """Returns random values that fill the range of the input."""
    rng = np.random.default_rng(seed)
    if layer.int8:
        return rng.integers(-128, 128, layer.shape).astype(np.int8)
    return rng.normal(size=layer.shape).astype(np.float32)


def _kernel_shape(layer):
    channels = layer.shape[-1]
    if layer.operator == "FULLY_CONNECTED":
        return layer.filters, channels
    if layer.operator == "DEPTHWISE_CONV_2D":
        return 1, *layer.window, channels
    return layer.filters, *layer.window, channels // layer.groups


def _output_sizes(layer):
    batch, *sizes, _ = layer.shape
    if layer.operator == "FULLY_CONNECTED":
        return batch, *sizes
    made = [batch]
    for size, n, s, d in zip(
        sizes, layer.window, layer.stride, layer.dilation, strict=True
    ):
        size -= (n - 1) * d if layer.padding == "VALID" else 0
        made.append(-(-size // s))
    return made


def _activation(graph, layer, shape, scale, zero_point):
    tensor = schema.TensorT(
        shape=np.array([1 if i in layer.free else n for i, n in enumerate(shape)], "i"),
        hasRank=True,
        type=T.INT8 if layer.int8 else T.FLOAT32,
        buffer=0,
    )
    if layer.free:
        free = [-1 if i in layer.free else n for i, n in enumerate(shape)]
        tensor.shapeSignature = np.array(free, np.int32)
    if layer.int8:
        tensor.quantization = _quantization([scale], [zero_point])
    return flatbuffer.append_tensor(graph, tensor)


def _constant(model, graph, values, kind):
    tensor = schema.TensorT(
        shape=np.array(values.shape, np.int32),
        hasRank=True,
        type=kind,
        buffer=flatbuffer.append_buffer(model, values.reshape(-1).view(np.uint8)),
    )
    return flatbuffer.append_tensor(graph, tensor)


def _bias(model, graph, layer, scale, rng):
    values = rng.normal(size=scale.size)
    if not layer.int8:
        return _constant(model, graph, values.astype("<f4"), T.FLOAT32)
    steps = np.float32(INPUT_SCALE) * scale
    index = _constant(model, graph, np.round(values / steps).astype("<i4"), T.INT32)
    graph.tensors[index].quantization = _quantization(steps, np.zeros(scale.size))
    return index


def _quantization(scale, zero_point):
    return schema.QuantizationParametersT(
        scale=np.array(scale, np.float32),
        zeroPoint=np.array(zero_point, np.int64),
        quantizedDimension=0,
    )


def _options(layer):
    options = schema.BuiltinOptions
    if layer.operator == "FULLY_CONNECTED":
        return options.FullyConnectedOptions, schema.FullyConnectedOptionsT(
            fusedActivationFunction=layer.activation, keepNumDims=True
        )
    shared = {
        "padding": getattr(schema.Padding, layer.padding),
        "strideH": layer.stride[0],
        "strideW": layer.stride[1],
        "dilationHFactor": layer.dilation[0],
        "dilationWFactor": layer.dilation[1],
        "fusedActivationFunction": layer.activation,
    }
    if layer.operator == "CONV_2D":
        return options.Conv2DOptions, schema.Conv2DOptionsT(**shared)
    return options.DepthwiseConv2DOptions, schema.DepthwiseConv2DOptionsT(
        depthMultiplier=1, **shared
    )
