"""Export of a finalized Keras model to a verified `.tflite`."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from tfcompress.cost.arithmetic import xz_bytes
from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import levels_of_tensors
from tfcompress.graph.signature import functional, input_names, output_names
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.kernels import Kernel, Match, packed_kernels
from tfcompress.litert.lowering.lowering import Lowering, check_allowance
from tfcompress.litert.memory import peak_memory
from tfcompress.litert.pack import pack_kernels
from tfcompress.litert.proof.check import compare
from tfcompress.litert.proof.output import (
    kept_if_refused,
    output_path,
    replaced_when_done,
)
from tfcompress.litert.proof.samples import Samples
from tfcompress.litert.runtime import Runner
from tfcompress.litert.stored import check_written, kernel_tensors, recognize
from tfcompress.progress_bar import announced

TARGETS = ("litert", "micro")
OPTIMIZE = ("size", "balanced", "latency")
DTYPES = ("float", "int8")
# Options where none are given, and those that the files of microcontrollers have.
_OF_LITERT = {"optimize": "size", "activations": "float", "io": "float"}
_OF_MICRO = {"optimize": "size", "activations": "int8", "io": "int8"}
_VALUES_OF_MICRO = {
    "optimize": ("size", "latency"),
    "activations": ("int8",),
    "io": ("int8",),
}
# Suffixes of source code, and those that are written.
_SOURCES = (".c", ".cc", ".cpp", ".h", ".hpp")
_WRITTEN = (("micro", ".cc"), ("micro", ".cpp"))


def export(
    model: keras.Model,
    path: str | bytes | os.PathLike,
    verify: Any = None,
    optimize: str | None = None,
    activations: str | None = None,
    representative_data: Any = None,
    io: str | None = None,
    allowance: float | None = None,
    target: str = "litert",
    arena: float | str | None = None,
) -> dict[str, Any]:
    """Writes the `.tflite` of a finalized model, and verifies it.

    With optimize="size" each packed kernel becomes a constant INT2, INT4 or INT8 tensor
    with one scale per output channel, which the runtime decodes exactly. With "latency"
    and "balanced" operators read the same codes and scales themselves, and round their
    inputs to 8 bits. Each kernel is then stored in INT8. It is in INT4 or INT2 if its
    operator can be written as FULLY_CONNECTED, and the predicted time of the file stays
    within an allowance (`litert.lowering`).

    The file is read back before it appears at `path`. The type and bytes of each tensor
    are compared with the plan, and the stock LiteRT runtime must predict like Keras.

    With target="micro" the file computes with int8 throughout, and takes and returns
    int8. Each kernel gets the encoding with the fewest bytes that TensorFlow Lite Micro
    decodes: look-up tables, Huffman codes, a pruning mask, or none. For
    optimize="latency" it gets a look-up table or none. The runtime must decode each
    kernel to its codes, return the outputs of the same file without encodings to the
    bit, and predict nearly like Keras.

    Args:
        model: a Functional model with packed layers, as `tfcompress.finalize`
            returns it.
        path: path of the file. An existing file is replaced only by one that passes.
            A file that fails is kept as "model.refused.tflite" beside "model.tflite".
            With target="micro" a path that ends in ".cc" or ".cpp" gets C++ source with
            the file's bytes, and a header beside it.
        verify: samples to compare on: an array, a list or dict of arrays for
            several inputs, or a batched `tf.data.Dataset` of `x` or `(x, y)`.
            None takes a few random samples.
        optimize: "size", for the smallest file, which computes in float and decodes all
            kernels to float in memory; "latency", for the fewest bytes in about the
            time of a file with INT8 kernels; or "balanced", for the fewest bytes in the
            time of the float file. None is "size". target="micro" has "size" and
            "latency".
        activations: "float", or "int8" unless optimize="size", for a file that
            computes with integers throughout. Learned ranges of activations are kept;
            others come from `representative_data`. Layers kept in float are quantized
            to 8 bits as well. None is "float", or "int8" with target="micro".
        representative_data: training samples, as `verify` takes them, for
            activations="int8". At most 256 of them are used. None if the model has
            learned the ranges of all activations.
        io: dtype of the file's inputs and outputs: "float", or "int8" with
            activations="int8", for devices that read sensors as integers. Scales and
            zero points are in the file; `tfcompress.litert.predict` applies them. None
            is "float", or "int8" with target="micro".
        allowance: predicted time of the operators that read kernels, relative to a
            file of the same graph: for optimize="latency" the one with INT8 kernels,
            1.05 by default; for "balanced" the float file, 1.0 by default.
        target: "litert", or "micro" for TensorFlow Lite Micro (`tfcompress[micro]`, on
            Linux with an x86-64 processor).
        arena: with target="micro", memory of the runtime: bytes, or text with a unit
            ("64 kB"). Kernels that are too large to be decoded there are split by
            output channels, or stay INT8. None sets no limit.

    Returns:
        The dict of `tfcompress.litert.check`, and "size": {"float_tflite_bytes",
        "tflite_bytes", "tflite_xz_bytes", "arena_bytes"}: bytes of the same graph with
        float32 kernels, of the file, of the file after xz, and of the memory that the
        interpreter plans for one sample. Unless optimize="size" also
        "predicted_time" and "layers" of `Lowering.report`. "batch_size" is 1 if the
        file takes one sample at a time although the model takes any number; the key
        is missing otherwise. With activations="int8" also
        "ranges": {"learned", "calibrated"}, numbers of stored tensors with either.
        Those whose scale an operator prescribes are not counted.

        With target="micro" also "micro", with "flash_bytes" and "arena_bytes" of the
        file, "int8_flash_bytes" and "int8_arena_bytes" of the same file without
        encodings, "latency_ratio" of the two in the runtime on this machine, and
        "operators", the methods of a MicroMutableOpResolver. "tensors" is then a list
        of {"tensor", "shape", "encoding", "bits", "bytes", "int8_bytes", "parts",
        "reason"}: "bits" are those of an index, or of the longest code, and "reason"
        says why the kernel got its encoding.

    Raises:
        ImportError: if activations="int8" and litert-quantizer is not installed; or if
            target="micro" and tflite-micro is not.
        OSError: if `path` cannot be written.
        ValueError: if an argument is not one of its values, the model is a student or
            cannot be converted, or its file fails the verification.

    Warns:
        UserWarning: if the batch of the model is free and that of the file is not; and
            see `tfcompress.litert.proof.check.compare`.
    """
    path = output_path(path)
    optimize, activations, io = _of_target(
        target, optimize=optimize, activations=activations, io=io
    )
    _check_arguments(target, optimize, activations, representative_data, io)
    check_allowance(allowance, optimize)
    _check_target(target, path, arena)
    if target == "micro":
        # Not at the top: it is rarely needed.
        from tfcompress.micro.exporter import export_micro

        return export_micro(
            model, path, verify, representative_data, arena, optimize, allowance
        )
    kernels = packed_kernels(model)
    model = functional(model)
    samples = Samples(model, verify)
    representative = Samples(model, representative_data, "representative_data")
    for given in (samples, representative):
        given.check()  # before the work starts
    if activations == "int8":
        representative.check_given(not levels_of_tensors(Graph(model)))
    with announced(f"Export of '{path}'"):
        ranges, shapes = None, samples.smallest_shapes()
        lowering = None
        if optimize != "size":
            lowering = Lowering(optimize, shapes, allowance)
        with replaced_when_done(path) as temporary:
            if lowering is not None and activations == "int8":
                float_content, content, matches, ranges = _integer(
                    model, kernels, representative, io == "float", lowering
                )
            else:
                float_content, content, matches = _packed(model, kernels, lowering)
            with open(temporary, "wb") as stream:
                stream.write(content)
            with open(temporary, "rb") as stream:
                content = stream.read()
            with kept_if_refused(temporary, path):
                comparison = compare(content, model, samples, optimize == "size")
                tensors = kernel_tensors(content)
                if activations == "int8":  # layers kept in float have integer kernels
                    planned = {found.kernel.layer for found in matches}
                    tensors = [tensor for tensor in tensors if tensor.name in planned]
                check_written(tensors, matches)
        return {
            "size": {
                "float_tflite_bytes": len(float_content),
                "tflite_bytes": len(content),
                "tflite_xz_bytes": xz_bytes(content),
                "arena_bytes": peak_memory(content, shapes),
            },
            **(lowering.report if lowering else {}),
            **_narrow_batch(content, model),
            **comparison,
            **({} if ranges is None else {"ranges": ranges}),
            "tensors": recognize(tensors, kernels),
        }


def _narrow_batch(content: bytes, model: keras.Model) -> dict[str, int]:
    """Returns "batch_size" of a file that takes fewer samples than its model, if so."""
    batch_size = Runner(content).batch_size
    if batch_size is None or model.inputs[0].shape[0] is not None:
        return {}
    warnings.warn(
        f"The file takes {batch_size} sample at a time: the converter cannot convert "
        f"operations of '{model.name}', such as loops over steps, for any number of "
        "them. `tfcompress.litert.predict` runs one after the other.",
        stacklevel=3,
    )
    return {"batch_size": batch_size}


def packed_size(model: keras.Model, compressed: bool) -> int:
    """Returns the exact bytes of the `.tflite` that `export` would write.

    Args:
        model: a Functional model with packed layers.
        compressed: bool. Whether to count bytes after xz.

    Raises:
        ValueError: if the model is still in training or cannot be converted.
    """
    model = functional(model)
    _, content, _ = _packed(model, packed_kernels(model))
    return xz_bytes(content) if compressed else len(content)


def _packed(
    model: keras.Model, kernels: Sequence[Kernel], lowering: Lowering | None = None
) -> tuple[bytes, bytes, list[Match]]:
    """Returns `(content of the float file, content of the packed file, matches)`."""
    float_content = float_tflite(model)
    names = input_names(model), output_names(model)
    packed = pack_kernels(float_content, kernels, *names, lowering)
    return float_content, *packed


def _integer(
    model: keras.Model,
    kernels: Sequence[Kernel],
    samples: Samples,
    float_ends: bool,
    lowering: Lowering,
) -> tuple[bytes, bytes, list[Match], dict[str, int]]:
    """Returns the same of the integer file, and the numbers of its ranges' sources."""
    # Not at the top: it is rarely needed.
    from tfcompress.litert.integer.integer_tflite import integer_tflite

    names = input_names(model), output_names(model)
    content, matches, ranges = integer_tflite(
        model, kernels, samples, names, float_ends, lowering
    )
    samples.check_given(ranges["calibrated"])
    return float_tflite(model), content, matches, ranges


def _of_target(target: str, **options: str | None) -> list[str]:
    """Returns the values of options, with the target's own where they are None.

    Raises:
        ValueError: if the target is unknown, or takes another value.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` is one of {TARGETS}. Received: target={target!r}.")
    for name, value in options.items():
        known = _VALUES_OF_MICRO[name]
        if target == "micro" and value not in (None, *known):
            raise ValueError(
                f"{name}={' or '.join(map(repr, known))}, or None, is expected with "
                "target='micro', whose files are int8 throughout. Received: "
                f"{name}={value!r}."
            )
    defaults = _OF_MICRO if target == "micro" else _OF_LITERT
    return [defaults[name] if x is None else x for name, x in options.items()]


def _check_target(target: str, path: str | os.PathLike, arena: object) -> None:
    suffix = os.path.splitext(os.fspath(path))[1]
    if target == "litert" and arena is not None:
        raise ValueError(
            f"`arena` is expected with target='micro'. Received: arena={arena!r}, "
            "target='litert'."
        )
    if suffix in _SOURCES and (target, suffix) not in _WRITTEN:
        raise ValueError(
            "`path` should end in '.tflite', or with target='micro' in '.cc' or '.cpp' "
            f"for C++ source. Received: '{os.fspath(path)}', target={target!r}."
        )


def _check_arguments(target, optimize, activations, representative_data, io):
    for name, value, known in (
        ("optimize", optimize, OPTIMIZE),
        ("activations", activations, DTYPES),
        ("io", io, DTYPES),
    ):
        if value not in known:
            raise ValueError(f"`{name}` is one of {known}. Received: {name}={value!r}.")
    if target == "micro":
        return
    if activations == "int8" and optimize == "size":
        raise ValueError(
            "activations='int8' is expected with optimize='latency' or 'balanced'. "
            f"Received: optimize={optimize!r}."
        )
    if activations == "float" and representative_data is not None:
        raise ValueError(
            "`representative_data` is expected with activations='int8'. Received: "
            "activations='float'."
        )
    if (activations, io) == ("float", "int8"):
        raise ValueError(
            "io='int8' is expected with activations='int8'. Received: "
            "activations='float'."
        )
