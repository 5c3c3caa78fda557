"""Stock full-integer files: int8 tensors between operators, ranges from data."""

import contextlib
import io
import warnings

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.litert import flatbuffer

# Representative samples that are enough.
SAMPLES = 256
BATCH_SIZE = 16
# Tensors that vary less are as good as constant, and no unit to count biases in.
LEAST_RANGE = 1e-6


def quantized_tflite(content, samples, choose=None, float_ends=True):
    """A float file with int8 tensors and kernels, as litert-quantizer makes it.

    Args:
        content: of `float_tflite`.
        samples: iterable of batches of representative inputs, lists of arrays.
        choose: function from a tensor's name, minimum and maximum in the samples to the
            minimum and maximum that it is to have.
        float_ends: whether its inputs and outputs are float32, or int8 as well.

    Returns:
        The file's content, bytes.

    Raises:
        ImportError: if litert-quantizer is not installed.
    """
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError as error:
        raise ImportError(
            "activations='int8' needs the package litert-quantizer. Install "
            "`tfcompress[int8]`."
        ) from error
    engine = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    with _quiet():
        found = {}
        for batch in _batches(samples):
            _widen(found, engine.calibrate({"serving_default": [batch]}))
        for name, limits in found.items():
            if choose is not None:
                chosen_limits = choose(
                    name, np.min(limits["min"]), np.max(limits["max"])
                )
                for key, value in zip(("min", "max"), chosen_limits, strict=True):
                    limits[key] = np.full_like(limits[key], value)
            if (
                float(np.max(limits["max"])) - float(np.min(limits["min"]))
                < LEAST_RANGE
            ):
                limits["max"] = np.full_like(limits["max"], 1.0)  # any will do
        quantized = bytes(engine.quantize(found).quantized_model)
    return _with_float_ends(quantized) if float_ends else quantized


def _batches(samples):
    """Batches of `SAMPLES` samples, evenly chosen, as litert-quantizer takes them."""
    arrays = [np.concatenate(x) for x in zip(*samples, strict=True)]
    count = len(arrays[0])
    chosen = np.linspace(0, count - 1, min(count, SAMPLES)).astype(int)
    for first in range(0, len(chosen), BATCH_SIZE):
        rows = chosen[first : first + BATCH_SIZE]
        yield {f"input_{i}": array[rows] for i, array in enumerate(arrays)}


def _widen(found, limits):
    """Takes the limits of one more batch into those that were found before.

    litert-quantizer averages them, so that it clips the largest values of all.
    """
    for name, new in limits.items():
        old = found.setdefault(name, new)
        found[name] = {
            "min": np.minimum(old["min"], new["min"]),
            "max": np.maximum(old["max"], new["max"]),
        }


def _with_float_ends(content):
    """The file with float32 in front of int8 inputs, and behind int8 outputs."""
    model = flatbuffer.read(content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    first, last = [], []
    for entries, operators, name in (
        (signature.inputs, first, "QUANTIZE"),
        (signature.outputs, last, "DEQUANTIZE"),
    ):
        for entry in entries:
            inner = entry.tensorIndex
            if graph.tensors[inner].type == schema.TensorType.INT8:
                outer = flatbuffer.computed_tensor(
                    graph.tensors[inner], schema.TensorType.FLOAT32
                )
                entry.tensorIndex = flatbuffer.append_tensor(graph, outer)
                ends = [entry.tensorIndex, inner]
                ends = ends if name == "QUANTIZE" else reversed(ends)
                operators.append(flatbuffer.operator(model, name, *ends))
    graph.operators = [*first, *graph.operators, *last]
    for field in ("inputs", "outputs"):
        indices = [entry.tensorIndex for entry in getattr(signature, field)]
        setattr(graph, field, np.array(indices, np.int32))
    return flatbuffer.write(model)


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
