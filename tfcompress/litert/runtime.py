"""Inference with `.tflite` files in the stock LiteRT runtime.

The module imports no TensorFlow, and runs as a program of its own for `try_out`.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

# A path, or the content of a file.
File: TypeAlias = str | os.PathLike | bytes

# Bytes 4 to 7 of a file.
IDENTIFIER = b"TFL3"
# Time limit of `try_out`, in seconds.
TRY_OUT_SECONDS = 60


class Runner:
    """`.tflite` loaded into LiteRT.

    Quantized inputs take floats as well as codes, and quantized outputs are returned
    as floats, by the scales and zero points in the file.

    Attributes:
        name: str. The file in error messages.
        inputs: list of (name, details), in the file's order. The details are LiteRT's,
            with `dtype` and `shape_signature` (-1 for a free size).
        outputs: list of (name, details) of the outputs.
        batch_size: int or None. Batch that the file takes; None if it is free.

    Args:
        file: path of a `.tflite`, or its content as bytes.
        num_threads: int. Threads of the runtime's CPU kernels.
        resolver: member of LiteRT's `OpResolverType`. Set of kernels; the runtime's own
            choice by default.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if LiteRT refuses the content.
    """

    def __init__(
        self,
        file: File,
        num_threads: int = 1,
        resolver: OpResolverType = OpResolverType.AUTO,
    ) -> None:
        self.name = "bytes" if isinstance(file, bytes) else f"'{os.fspath(file)}'"
        content = read_file(file)
        if not content:
            raise ValueError(
                f"A .tflite file is expected. Received: {self.name}, empty."
            )
        with _explained(self.name, "loaded"):
            self._interpreter = Interpreter(
                model_content=content,
                num_threads=num_threads,
                experimental_op_resolver_type=resolver,
            )
            names = self._signature_names()
            self.inputs, self.outputs = (
                [(names.get(x["index"], x["name"]), x) for x in details]
                for details in (
                    self._interpreter.get_input_details(),
                    self._interpreter.get_output_details(),
                )
            )
        sizes = [*self.inputs[0][1]["shape_signature"], -1] if self.inputs else [-1]
        self.batch_size = None if sizes[0] < 0 else int(sizes[0])
        self._shapes: list[tuple[int, ...]] | None = None

    def __call__(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; a file for a batch of one runs sample by sample.

        Args:
            batch: list of one array per input, in the order of `inputs`.

        Returns:
            List of one array per output, in the order of `outputs`.

        Raises:
            ValueError: if the arrays do not fit the inputs, or LiteRT fails.
        """
        if self.batch_size == 1 and batch and np.ndim(batch[0]) and len(batch[0]) > 1:
            rows = [
                self([array[i : i + 1] for array in batch])
                for i in range(len(batch[0]))
            ]
            return [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]
        batch = self._fitting(batch)
        with _explained(self.name, "run"):
            self._resize([array.shape for array in batch])
            for (_, details), array in zip(self.inputs, batch, strict=True):
                self._interpreter.set_tensor(details["index"], array)
            self._interpreter.invoke()
            return [
                decoded(self._interpreter.get_tensor(details["index"]), details)
                for _, details in self.outputs
            ]

    def places(self) -> dict[int, tuple[int, int]]:
        """Returns `{tensor index: (address, bytes)}` of the tensors that have memory.

        The addresses are valid until the next run.
        """
        places = {}
        for details in self._interpreter.get_tensor_details():
            # Tensors within a delegate's part of the graph have none.
            with contextlib.suppress(ValueError):
                array = self._interpreter.tensor(details["index"])()
                address, _ = array.__array_interface__["data"]
                places[details["index"]] = address, array.nbytes
        return places

    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Returns `{tensor index: shape}` of all tensors in the last run."""
        details = self._interpreter.get_tensor_details()
        return {x["index"]: tuple(x["shape"].tolist()) for x in details}

    def _fitting(self, batch):
        """Checks a batch, and converts it to the inputs' dtypes."""
        received = [(array.dtype.name, array.shape) for array in batch]
        expected = [
            (np.dtype(x["dtype"]).name, tuple(x["shape_signature"].tolist()))
            for _, x in self.inputs
        ]
        if len(received) != len(expected) or not all(
            _takes(details, dtype) and _fits(shape, signature)
            for (dtype, shape), (_, signature), (_, details) in zip(
                received, expected, self.inputs, strict=True
            )
        ):
            raise ValueError(
                f"{self.name} expects inputs of dtype and shape {expected} (-1 for any "
                f"size). Received: {received}."
            )
        return [
            coded(array, x) for array, (_, x) in zip(batch, self.inputs, strict=True)
        ]

    def _resize(self, shapes):
        if shapes != self._shapes:
            for (_, details), shape in zip(self.inputs, shapes, strict=True):
                self._interpreter.resize_tensor_input(details["index"], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes

    def _signature_names(self):
        """Returns `{tensor index: name}`; empty unless the file has one signature."""
        if len(self._interpreter.get_signature_list()) != 1:
            return {}
        signature = self._interpreter.get_signature_runner()
        details = {**signature.get_input_details(), **signature.get_output_details()}
        return {x["index"]: name for name, x in details.items()}


def _is_quantized(details):
    return details["quantization"][0] > 0


def _takes(details, dtype):
    if _is_quantized(details) and np.issubdtype(dtype, np.floating):
        return True
    return np.can_cast(dtype, details["dtype"], "same_kind")


def coded(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Converts an array to an input's dtype, or floats to a quantized input's codes."""
    dtype = details["dtype"]
    if _is_quantized(details) and np.issubdtype(array.dtype, np.floating):
        scale, zero_point = details["quantization"]
        limits = np.iinfo(dtype)
        array = np.round(array / np.float32(scale)) + zero_point
        array = np.clip(array, limits.min, limits.max)
    return array.astype(dtype, copy=False)


def decoded(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Returns the values of a quantized output; other outputs as they are."""
    if not _is_quantized(details):
        return array
    scale, zero_point = details["quantization"]
    return (array.astype(np.float32) - zero_point) * np.float32(scale)


def _fits(shape, signature):
    return len(shape) == len(signature) and all(
        wanted in (-1, size) for size, wanted in zip(shape, signature, strict=True)
    )


@contextlib.contextmanager
def _explained(name, action):
    """Turns the runtime's errors into ones that name the file and likely causes."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"A .tflite file that LiteRT can run is expected. Received: {name}, which "
            f"could not be {action}; it may be truncated, damaged or no .tflite at "
            f"all. LiteRT says: {error}"
        ) from error


def read_file(file: File) -> bytes:
    """Returns the content of a file; bytes are returned as they are.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it does not begin as a `.tflite`; no more of it is read then.
    """
    if isinstance(file, bytes):
        return file
    with open(file, "rb") as stream:
        head = stream.read(8)
        if head[4:] != IDENTIFIER:
            raise ValueError(
                "A .tflite file is expected, with 'TFL3' after its first four bytes. "
                f"Received: '{os.fspath(file)}', which is empty, truncated or another "
                "file."
            )
        return head + stream.read()


def predict(
    file: File, x: Any, batch_size: int = 128, num_threads: int = 1
) -> np.ndarray | dict[str, np.ndarray]:
    """Runs a `.tflite` over data, as `model.predict` runs a Keras model.

    Args:
        file: path of a `.tflite`, or its content as bytes.
        x: array (samples, ...); for several inputs a list of arrays in their order or
            a dict by their names; or a batched `tf.data.Dataset` of these, or of
            `(x, y)`.
        batch_size: int. Samples per run. A dataset, or a file with a fixed batch size,
            has its own.
        num_threads: int. Threads of the runtime's CPU kernels.

    Returns:
        Array with the output of all samples; a dict by name for several outputs.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it cannot be run, or `x` does not fit it.
    """
    runner = Runner(file, num_threads)
    names = [name for name, _ in runner.inputs]
    batch_size = runner.batch_size or batch_size
    with _progress_bar("Predictions of LiteRT", None) as bar:
        batches = [runner(batch) for batch in bar.over(split(x, names, batch_size))]
    outputs = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    if len(outputs) == 1:
        return outputs[0]
    return {
        name: output for (name, _), output in zip(runner.outputs, outputs, strict=True)
    }


def _progress_bar(title, total):
    # Not at the top: the program of `try_out` starts without Keras.
    from tfcompress.progress_bar import progress_bar

    return progress_bar(title, total)


def split(x: Any, names: Sequence[str], batch_size: int) -> Iterator[list[np.ndarray]]:
    """Yields batches of data, lists of one array per input.

    Args:
        x: data, as `predict` takes it.
        names: names of the inputs, in order.
        batch_size: int. Samples per batch; the last may have fewer.

    Raises:
        ValueError: if `x` is empty or infinite, or does not fit the names.
    """
    is_dataset = hasattr(x, "as_numpy_iterator")
    batches = _of_dataset(x, names) if is_dataset else _of_arrays(x, names, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError("At least one sample is expected. Received: none.")
    yield first
    yield from batches


def _of_dataset(dataset, names):
    if dataset.cardinality() == -1:
        raise ValueError(
            "A finite dataset is expected. Received: one without end. `take` some of "
            "its batches."
        )
    # Elements `(x, y)` lose their labels.
    for element in dataset.as_numpy_iterator():
        yield _ordered(element[0] if isinstance(element, tuple) else element, names)


def _of_arrays(x, names, batch_size):
    arrays = _ordered(x, names)
    counts = {array.shape[:1] for array in arrays}
    if len(counts) > 1:
        raise ValueError(
            "The same number of samples for each input is expected. Received: shapes "
            f"{[array.shape for array in arrays]}."
        )
    for start in range(0, len(arrays[0]), batch_size):
        yield [array[start : start + batch_size] for array in arrays]


def _ordered(x, names):
    """Lists one array per input, in the order of the names."""
    given = list(x.values()) if isinstance(x, dict) else x
    for array in given if isinstance(given, (list, tuple)) else [given]:
        if np.ndim(array) == 0:
            raise ValueError(
                "An array of samples, a list or dict of arrays, or a batched "
                "tf.data.Dataset is expected. Received: an object of type "
                f"{type(array).__name__}."
            )
    if isinstance(x, dict):
        missing = [name for name in names if name not in x]
        arrays = [x[name] for name in names if name in x]
    else:
        arrays = x if isinstance(x, (list, tuple)) else [x]
        missing = len(arrays) != len(names)
    if missing:
        raise ValueError(
            f"One array for each of the inputs {names} is expected. Received: "
            f"{list(x) if isinstance(x, dict) else f'{len(arrays)} arrays'}."
        )
    return [np.asarray(array) for array in arrays]


def try_out(path: str | os.PathLike, shapes: Sequence[Sequence[int]]) -> None:
    """Loads and runs a file in a process of its own.

    LiteRT verifies a file's structure. A few damaged files pass, and then crash the
    process or never end. A file that runs there is safe to run in this process.

    Args:
        path: a `.tflite`.
        shapes: shape of each input for the run.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it cannot be loaded or run, or exceeds `TRY_OUT_SECONDS`.
    """
    read_file(path)
    command = [sys.executable, "-P", __file__, os.fspath(path), json.dumps(shapes)]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=TRY_OUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        problem = f"was still busy with one run after {TRY_OUT_SECONDS} s"
    else:
        if result.returncode == 0:
            return
        if "ValueError: " in result.stderr:
            raise ValueError(result.stderr.rpartition("ValueError: ")[2].strip())
        problem = f"ended its process with code {result.returncode}: {result.stderr}"
    raise ValueError(
        "A .tflite file that LiteRT can run is expected. Received: "
        f"'{os.fspath(path)}', which {problem}"
    )


def _main(path, shapes):
    runner = Runner(path)
    runner(
        [
            np.zeros(shape, details["dtype"])
            for shape, (_, details) in zip(
                json.loads(shapes), runner.inputs, strict=False
            )
        ]
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
