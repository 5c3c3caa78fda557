"""Export of a finalized Keras model for TensorFlow Lite Micro."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.compat.litert_private import schema
from tfcompress.cost.arithmetic import xz_bytes
from tfcompress.cost.parse_bytes import parse_bytes
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import levels_of_tensors
from tfcompress.graph.signature import functional, input_names, output_names
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.integer.integer_tflite import integer_graph
from tfcompress.litert.kernels import (
    DATA_AND_BIAS,
    GATHER,
    Kernel,
    Match,
    packed_kernels,
)
from tfcompress.litert.lowering.lowering import ALLOWANCES
from tfcompress.litert.proof.output import replaced_when_done
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.stored import check_written, kernel_tensors
from tfcompress.micro.arena import fitting_file
from tfcompress.micro.codes import fill_eight_bits
from tfcompress.micro.costs import looked_up_in_time
from tfcompress.micro.operators import (
    check_supported,
    layer_names,
    operator_name,
    resolver_methods,
)
from tfcompress.micro.proof import prove
from tfcompress.micro.rewrite import encoded_file
from tfcompress.micro.runtime import (
    EndedError,
    MicroError,
    MicroRunner,
    MicroRuntime,
    check_installed,
    relative_time,
    sufficient_arena,
)
from tfcompress.micro.source import SUFFIXES, header_path, sources
from tfcompress.micro.tables import check_tables, drop_negative_tokens, write_tables
from tfcompress.progress_bar import announced

# Timed runs of each file.
RUNS = 20
# Places of kernels and tables among the inputs of operators.
_KERNEL = {GATHER: 0, **dict.fromkeys(DATA_AND_BIAS, 1)}
# Types of inputs and outputs. Float32 becomes int8, the others stay.
TYPES = ("float32", "int8", "int16", "int32", "int64", "bool")
# Bytes of a zero point, with its length and alignment.
_RANGE_BYTES = 12


def export_micro(
    model: keras.Model,
    path: str | os.PathLike,
    verify: Any,
    representative_data: Any,
    arena: float | str | None,
    optimize: str,
    allowance: float | None,
) -> dict[str, Any]:
    """Writes the file of a model for TensorFlow Lite Micro, and verifies it.

    See `tfcompress.litert.export` with target="micro".

    Args:
        model, path, verify, representative_data, arena, optimize, allowance: as there.

    Returns:
        The dict described there.

    Raises:
        ImportError, OSError, ValueError: as there.
    """
    budget = None if arena is None else parse_bytes(arena, "arena")
    check_installed()
    kernels = packed_kernels(model)
    model = functional(model)
    _check_ends(model)
    samples = Samples(model, verify)
    representative = Samples(model, representative_data, "representative_data")
    for given in (samples, representative):
        given.check()  # before the work starts
    representative.check_given(not levels_of_tensors(Graph(model)))
    with (
        announced(f"Export of '{os.fspath(path)}'"),
        _replaced(path) as temporary,
        MicroRuntime() as runtime,
    ):
        plain, matches, ranges, layers = int8_file(model, kernels, representative)
        representative.check_given(ranges["calibrated"])
        check_written(_planned(plain, matches), matches)
        _check_runs(runtime, plain, layers)
        encodings = None
        if optimize == "latency":
            encodings = looked_up_in_time(plain, allowance or ALLOWANCES[optimize])
        content, rows, least, plain_least = fitting_file(
            runtime, plain, budget, encodings
        )
        comparison = prove(runtime, plain, content, model, samples)
        operators = resolver_methods(content)
        latency_ratio = relative_time(runtime, ("int8", "encoded"), RUNS)
        _write(temporary, path, content, least, operators)
    return {
        "size": {
            "float_tflite_bytes": len(float_tflite(model)),
            "tflite_bytes": len(content),
            "tflite_xz_bytes": xz_bytes(content),
        },
        "micro": {
            "flash_bytes": len(content),
            "int8_flash_bytes": len(plain),
            "arena_bytes": least,
            "int8_arena_bytes": plain_least,
            "latency_ratio": latency_ratio,
            "operators": operators,
        },
        **comparison,
        "ranges": ranges,
        "tensors": rows,
    }


def int8_file(
    model: keras.Model, kernels: Sequence[Kernel], representative: Samples
) -> tuple[bytes, list[Match], dict[str, int], list[str]]:
    """Makes the int8 file that is to be encoded.

    Args:
        model: a Functional model with packed layers.
        kernels: its kernels.
        representative: samples for the ranges of activations.

    Returns:
        `(content, matches, ranges, layers)`: as `integer_tflite` returns them, and the
        layer of each operator.

    Raises:
        ValueError: if the file needs an operator that the runtime lacks.
    """
    names = input_names(model), output_names(model)
    batch_size = model.inputs[0].shape[0] or 1
    file, places, tables, ranges = integer_graph(
        model, kernels, representative, names, False, batch_size
    )
    matches = fill_eight_bits(file, places)
    written = write_tables(file, tables)
    drop_negative_tokens(file)
    file = flatbuffer.read(flatbuffer.write(file))  # new names become bytes
    layers = layer_names(file, model)
    check_supported(file, layers)
    graph = file.subgraphs[0]
    planned = {*written, *(found.kernel.layer for found in matches)}
    for operator, layer in zip(graph.operators, layers, strict=True):
        of_kernel = _KERNEL.get(operator_name(file, operator))
        for place, index in enumerate(operator.inputs):
            if index >= 0:
                tensor = graph.tensors[index]
                name = flatbuffer.tensor_name(tensor)
                name = name if name in planned else layer
                _simplify(file, tensor, name if place == of_kernel else None)
    for index in graph.outputs:
        graph.tensors[index].shapeSignature = None
    file.signatureDefs = None
    flatbuffer.strip(file)
    content = flatbuffer.write(file)
    check_tables(content, written)
    return content, matches, ranges, layers


def flash_size(model: keras.Model) -> int:
    """Returns the bytes of the file that `export` would write, or a few more.

    Ranges of activations are those of random samples. Equal ranges are stored once, so
    that bytes for those of all tensors are added.

    Args:
        model: a Functional model with packed layers.

    Raises:
        ImportError: if litert-quantizer is not installed.
        ValueError: if the model is still in training, or cannot be converted.
    """
    kernels = packed_kernels(model)
    model = functional(model)
    _check_ends(model)
    plain, *_ = int8_file(model, kernels, Samples(model, None))
    content, _ = encoded_file(plain, {})
    tensors = flatbuffer.read(plain).subgraphs[0].tensors
    return len(content) + _RANGE_BYTES * len(tensors)


def _simplify(file: schema.ModelT, tensor: schema.TensorT, name: str | None) -> None:
    """Drops what the runtime ignores.

    Args:
        file: the parsed file.
        tensor: an input of an operator. It is changed.
        name: str, the new name of a kernel; or None.
    """
    tensor.shapeSignature = None
    if flatbuffer.constant(file, tensor) is not None:
        is_integer = tensor.type in flatbuffer.TENSOR_BITS
        tensor.name = name.encode() if is_integer and name is not None else None


def _planned(content, matches):
    names = {found.kernel.layer for found in matches}
    return [tensor for tensor in kernel_tensors(content) if tensor.name in names]


def _check_ends(model: keras.Model) -> None:
    """Checks that the runtime has the shapes and types of inputs and outputs."""
    shapes = [tuple(x.shape) for x in model.inputs]
    if any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "target='micro' takes inputs of fixed sizes: the runtime plans its memory "
            f"once. Received: inputs of shapes {shapes}. Make `inputs` of fixed sizes "
            "by keras.Input, and export keras.Model(inputs, model(inputs))."
        )
    ends = {
        "input": (input_names, model.inputs),
        "output": (output_names, model.outputs),
    }
    for kind, (names, tensors) in ends.items():
        for name, tensor in zip(names(model), tensors, strict=True):
            _check_type(kind, name, keras.backend.standardize_dtype(tensor.dtype))


def _check_type(kind, name, dtype):
    if dtype in TYPES:
        return
    remedy = {
        "input": "Give the model inputs of float32, by keras.models.clone_model(model, "
        "input_tensors=keras.Input(shape)) and set_weights(model.get_weights()): the "
        "file then takes int8, and scale and zero point say which number a code is.",
        "output": "Let the model end before it, and compute it on the device yourself.",
    }[kind]
    raise ValueError(
        f"target='micro' has {kind}s of the types {', '.join(TYPES)}. Received: "
        f"'{name}' of type {dtype}. {remedy}"
    )


def _check_runs(runtime: MicroRuntime, plain: bytes, layers: Sequence[str]) -> None:
    """Loads the int8 file, and runs it once.

    Raises:
        ValueError: if the runtime refuses it. The layer is named.
    """
    try:
        MicroRunner(runtime, plain, "int8")
        runtime("milliseconds", ("int8",), 1)
    except MicroError as error:
        place = error.operator()
        if isinstance(error, EndedError):
            place = _ending(plain)
        if place is None:
            raise
        raise ValueError(
            "Layers that TensorFlow Lite Micro computes in int8 are expected. "
            f"Received: '{layers[place]}', which it refuses. Replace it by another "
            "layer, or let the model end before it, and compute it on the device "
            "yourself. Ranges of activations that differ much may be the cause too: "
            "train longer, or give other `representative_data`. The runtime says: "
            f"{error.messages.strip() or 'nothing'}"
        ) from error


def _ending(content: bytes) -> int:
    """Returns the position of the operator that ends the runtime's process."""
    count = len(flatbuffer.read(content).subgraphs[0].operators)
    low, high = 0, count
    with MicroRuntime() as runtime:
        while high - low > 1:
            middle = (low + high) // 2
            start = _start(content, middle)
            if runtime("fits", start, sufficient_arena(content)):
                low = middle
            else:
                high = middle
    return high - 1


def _start(content, count):
    """The file with its first operators only."""
    model = flatbuffer.read(content)
    (graph,) = model.subgraphs
    graph.operators = graph.operators[:count]
    graph.outputs = graph.operators[-1].outputs
    flatbuffer.drop_unused_tensors(model)
    return flatbuffer.write(model)


def is_source(path: str | os.PathLike) -> bool:
    """Returns whether a path is that of C++ source."""
    return os.fspath(path).endswith(SUFFIXES)


@contextlib.contextmanager
def _replaced(path):
    """Yields the temporary paths of all files that belong to `path`."""
    paths = [path, header_path(path)] if is_source(path) else [path]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(replaced_when_done(x)) for x in paths]


def _write(temporary, path, content, arena, operators):
    """Writes a file, or a source file and its header, to temporary paths."""
    contents = [content]
    if is_source(path):
        header, source = sources(path, content, arena, operators)
        contents = [source.encode(), header.encode()]
    for name, data in zip(temporary, contents, strict=True):
        with open(name, "wb") as stream:
            stream.write(data)
