"""Integer files as litert-quantizer makes them: int8 tensors, with ranges from data."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tfcompress.compat.litert_private import calibrate, schema, sort_arguments
from tfcompress.litert import flatbuffer
from tfcompress.litert.integer.input_levels import Limits
from tfcompress.litert.runtime import Runner
from tfcompress.progress_bar import progress_bar

# Number of representative samples that suffice.
SAMPLES = 256
BATCH_SIZE = 16
# Tensors with a smaller range are constant in effect. Their range is no unit to count
# biases in.
LEAST_RANGE = 1e-6


def quantized_tflite(
    content: bytes,
    samples: Iterable[Sequence[np.ndarray]],
    choose: Callable[[str, float, float], Limits] | None = None,
    float_ends: bool = True,
) -> bytes:
    """Quantizes the tensors and kernels of a float file to int8, by litert-quantizer.

    Args:
        content: bytes of `float_tflite`.
        samples: batches of representative inputs, lists of arrays.
        choose: function from a tensor's name, and its minimum and maximum in the
            samples, to the minimum and maximum that it should represent.
        float_ends: bool. Whether inputs and outputs are float32, or int8 as well.

    Returns:
        The file's content.

    Raises:
        ImportError: if litert-quantizer is not installed.
        ValueError: if it cannot quantize an operator of the file, such as a loop.
    """
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError as error:
        raise ImportError(
            "activations='int8' needs the package litert-quantizer. Install "
            "`tfcompress[int8]`."
        ) from error
    _check_no_loops(content)
    content = _starting_with(content, next(iter(samples)))
    outputs, content = _returning_unread(content)
    batches = list(_batches(samples, Runner(content).batch_size or BATCH_SIZE))
    engine = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    with _quiet(), _explained():
        ranges: dict[str, dict[str, np.ndarray]] = {}
        with progress_bar("Ranges of tensors", len(batches)) as bar:
            for batch in bar.over(batches):
                _widen(ranges, calibrate(engine, batch))
        for name, limits in ranges.items():
            _adjust(name, limits, choose)
        made = engine.quantize(ranges, enable_progress_report=False)
    quantized = bytes(made.quantized_model)
    quantized = _with_exact_integers(_returning_first(quantized, outputs))
    return _with_float_ends(quantized) if float_ends else quantized


def _check_no_loops(content: bytes) -> None:
    model = flatbuffer.read(content)
    operators = [x for graph in model.subgraphs for x in graph.operators]
    if any(flatbuffer.operator_name(model, x) == "WHILE" for x in operators):
        raise ValueError(
            "A file is expected in which litert-quantizer can quantize every operator. "
            "Received one with loops over steps. Export it with target='litert' and "
            "activations='float', or build recurrent layers with unroll=True for "
            "activations='int8' and target='micro'."
        )


def _starting_with(content: bytes, batch: Sequence[np.ndarray]) -> bytes:
    """Sets the sizes that free axes of the inputs have before they are resized.

    The converter sets 1, and litert-quantizer lets LiteRT prepare the file for these
    sizes first: a convolution without padding cannot be computed on them.
    """
    model = flatbuffer.read(content)
    sort_arguments(model.signatureDefs[0].inputs)
    for entry, array in zip(model.signatureDefs[0].inputs, batch, strict=True):
        tensor = model.subgraphs[0].tensors[entry.tensorIndex]
        tensor.shape = np.array([*tensor.shape[:1], *array.shape[1:]], np.int32)
    return flatbuffer.write(model)


def _returning_unread(content: bytes) -> tuple[int, bytes]:
    """Adds results that no operator reads to the outputs of the main graph.

    LiteRT keeps no values of them otherwise, and litert-quantizer wants those of all
    tensors. Such a result is the gate of an unrolled LSTM's first step that would be
    multiplied by a state of zeros.

    Returns:
        `(number of outputs before, content)`.
    """
    model = flatbuffer.read(content)
    graph = model.subgraphs[model.signatureDefs[0].subgraphIndex]
    read = {int(i) for x in graph.operators for i in x.inputs} | {*graph.outputs}
    made = [int(i) for x in graph.operators for i in x.outputs]
    unread = [index for index in made if index not in read]
    outputs = len(graph.outputs)
    graph.outputs = np.array([*graph.outputs, *unread], np.int32)
    return outputs, flatbuffer.write(model)


def _returning_first(content: bytes, outputs: int) -> bytes:
    """Keeps the first outputs of the main graph only."""
    model = flatbuffer.read(content)
    graph = model.subgraphs[model.signatureDefs[0].subgraphIndex]
    graph.outputs = graph.outputs[:outputs]
    return flatbuffer.write(model)


def _with_exact_integers(content: bytes) -> bytes:
    """Lets inputs stay float32 that are read as integers, such as tokens.

    Keras's inputs are float32 unless said otherwise. In 8 bits others would be read.
    """
    model = flatbuffer.read(content)
    for graph in model.subgraphs:
        for index in graph.inputs:
            readers = _readers(graph, index)
            floats = [int(reader.outputs[0]) for reader in readers]
            casts = [x for i in floats for x in _readers(graph, i)]
            if _are(model, readers, "DEQUANTIZE") and _are(model, casts, "CAST"):
                graph.tensors[index].type = schema.TensorType.FLOAT32
                graph.tensors[index].quantization = None
                graph.operators = [x for x in graph.operators if x not in readers]
                for cast in casts:
                    cast.inputs = np.array([index], np.int32)
    return flatbuffer.write(model)


def _readers(graph, index):
    return [x for x in graph.operators if index in x.inputs]


def _are(model, operators, name):
    names = [flatbuffer.operator_name(model, x) for x in operators]
    return bool(names) and all(found == name for found in names)


def _batches(
    samples: Iterable[Sequence[np.ndarray]], size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of `SAMPLES` samples, evenly chosen, by the inputs' names.

    Samples of other sizes are in other batches.
    """
    of_sizes: dict[tuple, list[Sequence[np.ndarray]]] = {}
    for batch in samples:
        sizes = tuple(array.shape[1:] for array in batch)
        of_sizes.setdefault(sizes, []).append(batch)
    total = sum(len(batch[0]) for batches in of_sizes.values() for batch in batches)
    for batches in of_sizes.values():
        arrays = [np.concatenate(x) for x in zip(*batches, strict=True)]
        count = len(arrays[0])
        wanted = math.ceil(count * min(1.0, SAMPLES / total))
        chosen = np.linspace(0, count - 1, wanted).astype(int)
        for first in range(0, wanted, size):
            rows = chosen[first : first + size]
            yield {f"input_{i}": array[rows] for i, array in enumerate(arrays)}


def _widen(ranges, limits):
    """Extends the ranges of all tensors to the limits in one more batch.

    litert-quantizer averages the limits of batches, which clips the largest values.
    """
    for name, new in limits.items():
        old = ranges.setdefault(name, new)
        ranges[name] = {
            "min": np.minimum(old["min"], new["min"]),
            "max": np.maximum(old["max"], new["max"]),
        }


def _adjust(name, limits, choose):
    """Replaces the limits of a tensor by chosen ones, and an empty range by another."""
    if choose is not None:
        chosen = choose(name, np.min(limits["min"]), np.max(limits["max"]))
        for key, value in zip(("min", "max"), chosen, strict=True):
            limits[key] = np.full_like(limits[key], value)
    if float(np.max(limits["max"])) - float(np.min(limits["min"])) < LEAST_RANGE:
        limits["max"] = np.full_like(limits["max"], 1.0)  # any range represents it


def _with_float_ends(content: bytes) -> bytes:
    """Adds QUANTIZE before int8 inputs and DEQUANTIZE after int8 outputs."""
    model = flatbuffer.read(content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    first: list[schema.OperatorT] = []
    last: list[schema.OperatorT] = []
    for entries, operators, name in (
        (signature.inputs, first, "QUANTIZE"),
        (signature.outputs, last, "DEQUANTIZE"),
    ):
        for entry in entries:
            inner = entry.tensorIndex
            if flatbuffer.has_int8_codes(graph.tensors[inner]):
                outer = flatbuffer.computed_tensor(
                    graph.tensors[inner], schema.TensorType.FLOAT32
                )
                entry.tensorIndex = flatbuffer.append_tensor(graph, outer)
                ends = [entry.tensorIndex, inner]
                if name == "DEQUANTIZE":
                    ends.reverse()
                operators.append(flatbuffer.operator(model, name, *ends))
    graph.operators = [*first, *graph.operators, *last]
    for field in ("inputs", "outputs"):
        indices = [entry.tensorIndex for entry in getattr(signature, field)]
        setattr(graph, field, np.array(indices, np.int32))
    return flatbuffer.write(model)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns errors of litert-quantizer into ones that say what to do."""
    try:
        yield
    except Exception as error:
        message = next(iter(str(error).splitlines()), "nothing")
        raise ValueError(
            "A file is expected in which litert-quantizer can quantize every operator. "
            "Received one with others. Export it with target='litert' and "
            f"activations='float'. litert-quantizer says: {message[:300]}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses litert-quantizer's progress and warnings.

    It writes neither to stdout, where progress bars appear.
    """
    with (
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
