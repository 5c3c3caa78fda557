"""Replacement of the float kernels of a `.tflite` by packed integers."""

from collections.abc import Sequence

import numpy as np

from tfcompress.compat.litert_private import schema, sort_arguments
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import (
    DECODED,
    GATHER,
    NATIVE_BITS,
    Kernel,
    Match,
    decode,
    kernel_tensor,
    match,
)
from tfcompress.litert.look_up import as_looked_up
from tfcompress.litert.lowering.lowering import Lowering, Place
from tfcompress.progress_bar import progress_bar


def pack_kernels(
    content: bytes,
    kernels: Sequence[Kernel],
    input_names: Sequence[str],
    output_names: Sequence[str],
    lowering: Lowering | None = None,
) -> tuple[bytes, list[Match]]:
    """Replaces float kernels by packed integers.

    Constants are found by content, since the converter renames, transposes and fuses
    them. A factor per channel that it folds into a kernel goes into the scale. A kernel
    that is used under two such factors is stored twice.

    Args:
        content: bytes of `tfcompress.litert.float_tflite`.
        kernels: kernels to replace.
        input_names, output_names: the model's, in the order of `float_tflite`.
        lowering: choice of the operators and containers where operators read the
            integers themselves. None decodes them by DEQUANTIZE.

    Returns:
        `(content, matches)`: bytes of the smaller `.tflite`, and the `Match` of each of
        its integer tensors.

    Raises:
        ValueError: if a kernel is not in the file.
    """
    model = flatbuffer.read(content)
    rename(model, input_names, output_names)
    decoded, read, tables = find_kernels(model, kernels)
    looked_up = []
    for graph, index, found in tables:
        written = as_looked_up(model, graph, index, found)
        if written is None:
            decoded.append((graph, index, found))
        else:
            looked_up.append(written)
    if lowering is None:
        decoded, read = decoded + read, []
    matches = [found for *_, found in decoded] + looked_up
    if lowering is not None:
        read = [(graph, index, found.in_container(8)) for graph, index, found in read]
        for graph, index, found in read:
            graph.tensors[index] = kernel_tensor(model, found)
        matches += lowering.apply(model, read)
    for graph, index, found in decoded:
        decode(model, graph, index, found)
    flatbuffer.strip(model)
    return flatbuffer.write(model), matches


def find_kernels(
    model: schema.ModelT, kernels: Sequence[Kernel]
) -> tuple[list[Place], list[Place], list[Place]]:
    """Finds the constants that hold kernels, by content.

    Args:
        model: a parsed float file.
        kernels: kernels to find.

    Returns:
        `(decoded, read, tables)`, lists of `(graph, tensor index, Match)`: kernels of
        operators that read floats alone, of those that read INT8 as well, and of GATHER
        alone.

    Raises:
        ValueError: if a kernel is not in the file.
    """
    constants = [
        (graph, index, readers)
        for graph in model.subgraphs
        for index, readers in _kernel_constants(model, graph)
    ]
    values = [_values(model, graph.tensors[index]) for graph, index, _ in constants]
    decoded: list[Place] = []
    read: list[Place] = []
    tables: list[Place] = []
    for (graph, index, readers), found in zip(
        constants, _assign(values, kernels), strict=True
    ):
        if found:
            kinds = decoded
            if readers == {GATHER}:
                kinds = tables
            elif readers <= NATIVE_BITS.keys():
                kinds = read
            kinds.append((graph, index, found))
    return decoded, read, tables


def _kernel_constants(model, graph):
    """Lists `(index, names of the operators that read it)` of the float kernels."""
    places = {**dict.fromkeys((*NATIVE_BITS, *DECODED), 1), GATHER: 0}
    readers: dict[int, set[str]] = {}
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if name in places:
            readers.setdefault(int(operator.inputs[places[name]]), set()).add(name)
    return [
        (index, readers[index])
        for index in sorted(readers)
        if graph.tensors[index].type == schema.TensorType.FLOAT32
        and flatbuffer.constant(model, graph.tensors[index]) is not None
    ]


def _values(model, tensor):
    data = flatbuffer.constant(model, tensor)
    return data.view(np.float32).reshape(tensor.shape)


def _assign(constants, kernels):
    """Returns the `Match` to write each constant with, or None to leave it."""
    with progress_bar("Kernels in the file", len(constants)) as bar:
        options = [
            [found for kernel in kernels if (found := match(values, kernel))]
            for values in bar.over(constants)
        ]
    known = {id(found.kernel) for matches in options for found in matches}
    missing = [kernel.layer for kernel in kernels if id(kernel) not in known]
    if missing:
        raise ValueError(
            f"The converted graph should have the kernels of {missing} as constants "
            "of convolutions, fully connected operators or look-ups. Received: a graph "
            "without them. A layer computes with other values than its kernel, or the "
            "converter changed them, or dropped a layer whose result is not used. "
            "Leave these layers in float."
        )
    # Codes may fit several constants: equal kernels, or few weights per channel.
    # Every fit gives the right values, but each kernel needs one. First come constants
    # with a fit without a folded factor, then those with few fits. They prefer a
    # kernel that has no constant so far.
    assigned, used = [None] * len(constants), set()
    order = sorted(
        range(len(constants)),
        key=lambda i: (all(found.folded for found in options[i]), len(options[i])),
    )
    for i in order:
        if options[i]:
            assigned[i] = min(
                options[i],
                key=lambda found: (found.folded, id(found.kernel) in used),
            )
            used.add(id(assigned[i].kernel))
    return assigned


def rename(
    model: schema.ModelT, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    """Puts inputs and outputs in Keras's order, under Keras's names."""
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]

    def renamed(entries, names):
        sort_arguments(entries)
        for entry, name in zip(entries, names, strict=True):
            entry.name = graph.tensors[entry.tensorIndex].name = name
        return np.array([entry.tensorIndex for entry in entries], np.int32)

    graph.inputs = renamed(signature.inputs, input_names)
    graph.outputs = renamed(signature.outputs, output_names)
