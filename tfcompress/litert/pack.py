"""From a float `.tflite` to one with packed integer kernels."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import NATIVE_BITS, match
from tfcompress.quantizers.packing import pack

# The version of DEQUANTIZE that has per-channel scales and types below a byte.
DEQUANTIZE_VERSION = 6


def pack_kernels(content, kernels, input_names, output_names, native=False):
    """Replaces float kernels by packed integers, each followed by DEQUANTIZE.

    Constants are found by content, which survives the converter's renaming,
    transposing and fusing. Where it folded a factor per channel into a kernel,
    that factor goes into the scale. One kernel used under two such factors is
    stored twice.

    Args:
        content: a float `.tflite` of `tfcompress.litert.float_tflite`, bytes.
        kernels: list of `Kernel`.
        input_names, output_names: the model's, in the order of `float_tflite`.
        native: see `find_kernels`; then no DEQUANTIZE follows.

    Returns:
        `(content, matches)`: the smaller `.tflite`, bytes, and the list of
        `Match` that it holds, one for each integer tensor.

    Raises:
        ValueError: if a kernel is not in the file.
    """
    model = flatbuffer.read(content)
    places = find_kernels(model, kernels, native)
    for graph, index, found in places:
        if native:
            graph.tensors[index] = kernel_tensor(model, found)
        else:
            _replace(model, graph, index, found)
    rename(model, input_names, output_names)
    flatbuffer.strip(model)
    return flatbuffer.write(model), [found for *_, found in places]


def find_kernels(model, kernels, native):
    """Where the kernels are, by content.

    Args:
        model: `schema.ModelT` of a float file.
        kernels: list of `Kernel`.
        native: whether operators are to read the integers themselves, so that each
            kernel is planned in a container that its readers take.

    Returns:
        List of `(graph, tensor index, Match)`.

    Raises:
        ValueError: if a kernel is not in the file.
    """
    constants = [
        (graph, index, readers)
        for graph in model.subgraphs
        for index, readers in _kernel_constants(model, graph)
    ]
    values = [
        flatbuffer.constant(model, graph.tensors[index])
        .view(np.float32)
        .reshape(graph.tensors[index].shape)
        for graph, index, _ in constants
    ]
    assigned = zip(constants, _assign(values, kernels), strict=True)
    return [
        (graph, index, found.read_by(readers) if native else found)
        for (graph, index, readers), found in assigned
        if found
    ]


def _kernel_constants(model, graph):
    """`(index, names of its readers)` of the float constants in a kernel's place."""
    readers = {}
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if name in NATIVE_BITS:
            readers.setdefault(operator.inputs[1], set()).add(name)
    return [
        (index, readers[index])
        for index in sorted(readers)
        if graph.tensors[index].type == schema.TensorType.FLOAT32
        and flatbuffer.constant(model, graph.tensors[index]) is not None
    ]


def _assign(constants, kernels):
    """For each constant, the `Match` to write it with, or None to leave it."""
    options = [
        [found for kernel in kernels if (found := match(values, kernel))]
        for values in constants
    ]
    known = {found.kernel.layer for matches in options for found in matches}
    missing = [kernel.layer for kernel in kernels if kernel.layer not in known]
    if missing:
        raise ValueError(
            f"The converted graph should have the kernels of {missing} as constants "
            "of a convolution or fully connected operator, and has not. The "
            "converter must have changed their values, or dropped a layer whose "
            "result is not used. Leave these layers in float."
        )
    # Codes may fit several constants: equal kernels, or few weights per channel.
    # Every fit gives the right values, but each kernel wants one. First come those
    # without a folded factor, then constants with little choice; they prefer a
    # kernel that has none so far.
    assigned, used = [None] * len(constants), set()
    order = sorted(
        range(len(constants)),
        key=lambda i: (all(found.folded for found in options[i]), len(options[i])),
    )
    for i in order:
        if options[i]:
            assigned[i] = min(
                options[i],
                key=lambda found: (found.folded, found.kernel.layer in used),
            )
            used.add(assigned[i].kernel.layer)
    return assigned


def _replace(model, graph, index, found):
    """Computes the tensor `index` from a new integer constant."""
    graph.tensors[index].buffer = 0
    graph.tensors.append(kernel_tensor(model, found))
    graph.operators.insert(
        0,
        flatbuffer.operator(
            model, "DEQUANTIZE", len(graph.tensors) - 1, index, DEQUANTIZE_VERSION
        ),
    )


def kernel_tensor(model, found):
    """The constant integer tensor of a `Match`, with a new buffer of the model."""
    bits = found.kernel.bits
    model.buffers.append(schema.BufferT(data=pack(found.codes, bits)))
    return schema.TensorT(
        name=found.kernel.layer,
        shape=np.array(found.codes.shape, np.int32),
        hasRank=True,
        type=flatbuffer.TENSOR_TYPES[bits],
        buffer=len(model.buffers) - 1,
        quantization=schema.QuantizationParametersT(
            scale=found.scale,
            zeroPoint=np.zeros(found.scale.size, np.int64),
            quantizedDimension=found.axis,
        ),
    )


def rename(model, input_names, output_names):
    """Puts inputs and outputs in Keras's order, under Keras's names."""
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]

    def renamed(maps, names):
        # The converter sorts them by name, "input_10" before "input_2".
        maps.sort(key=lambda entry: int(entry.name.rsplit(b"_", 1)[1]))
        for entry, name in zip(maps, names, strict=True):
            entry.name = graph.tensors[entry.tensorIndex].name = name
        return np.array([entry.tensorIndex for entry in maps], np.int32)

    graph.inputs = renamed(signature.inputs, input_names)
    graph.outputs = renamed(signature.outputs, output_names)
