"""TensorFlow Lite Micro, in a process of its own."""

import contextlib
import importlib.util
import os
import pickle
import platform
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import coded, decoded

WORKER = Path(__file__).with_name("worker.py")
# Seconds for one run of a file, or one step of a task, until the process is ended.
PATIENCE = 600.0
# Characters of the runtime's messages in an error.
_MESSAGES = 1000
_DTYPES = {
    schema.TensorType.BOOL: np.bool_,
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
}


def check_installed() -> None:
    """Checks that TensorFlow Lite Micro can be imported.

    Raises:
        ImportError: if it is not installed, or has no package for this machine.
    """
    if importlib.util.find_spec("tflite_micro") is not None:
        return
    found = f"{sys.platform}, {platform.machine()}"
    hint = (
        "Install `tfcompress[micro]`."
        if found == "linux, x86_64"
        else f"Export on such a machine. Received: {found}."
    )
    raise ImportError(
        "target='micro' needs the package tflite-micro, which runs on Linux with an "
        f"x86-64 processor. {hint}"
    )


class MicroError(ValueError):
    """Error of the runtime.

    Attributes:
        messages: str. All that the runtime printed.
    """

    def __init__(self, problem: str, messages: str) -> None:
        self.messages = messages
        super().__init__(
            "A file that TensorFlow Lite Micro can run is expected. Received: one that "
            f"{problem}. The runtime says: {messages.strip()[-_MESSAGES:]}"
        )

    def operator(self) -> int | None:
        """Returns the position of the operator that failed, or None if none did."""
        found = re.search(r"Node \w+ \(number (\d+)\) failed", self.messages)
        return int(found[1]) if found else None


class EndedError(MicroError):
    """Error of the runtime that ended its process."""


class MicroRuntime:
    """Process that runs files in TensorFlow Lite Micro.

    Its tasks are the functions of `worker.py`. Use it by `with`.
    """

    def __init__(self) -> None:
        check_installed()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # it has copies of itself, which end with it
        )
        self._requests: Any = self._process.stdin
        self._results: Any = self._process.stdout
        # All that the process says. An exception is its end.
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> "MicroRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        with contextlib.suppress(BrokenPipeError):  # of a request that was not read
            self._requests.close()
        self._results.close()
        self._log.close()

    def __call__(self, task: str, *arguments: Any) -> Any:
        """Runs a task of `worker.py`, and returns its result.

        Raises:
            EndedError: if the task ends the process.
            MicroError: if it fails, or has done no step of its work for `PATIENCE`
                seconds.
        """
        seen = self._log.seek(0, 2)
        try:
            pickle.dump((task, arguments), self._requests)
            self._requests.flush()
            succeeded, result = self._result()
        except queue.Empty:
            self._end()
            raise MicroError(
                f"has not ended a run within {PATIENCE:g} seconds. Export it where no "
                "other work runs; if that does not help, report this model as a bug",
                self._messages(seen),
            ) from None
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._end()
            code = self._process.returncode
            raise EndedError(
                f"ended its process with code {code}", self._messages(seen)
            ) from error
        if not succeeded:
            raise MicroError(f"fails: {result}", self._messages(seen))
        return result

    def _result(self):
        """The next result. Before it comes None for each step of the work."""
        said = None
        while said is None:
            said = self._said.get(timeout=PATIENCE)
        if isinstance(said, Exception):
            raise said
        return said

    def _listen(self):
        while True:
            try:
                self._said.put(pickle.load(self._results))
            except Exception as error:
                self._said.put(error)
                return

    def _end(self):
        """Ends the process and its copies, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join()

    def _messages(self, start):
        self._log.seek(start)
        return self._log.read().decode(errors="replace")


def relative_time(runtime: MicroRuntime, names: Sequence[str], runs: int) -> float:
    """Returns the time of a loaded file relative to that of another.

    It is the median over pairs of runs, which other load slows alike.

    Args:
        runtime: a `MicroRuntime`.
        names: name of the other file, and of the file.
        runs: int. Number of pairs.
    """
    times = runtime("milliseconds", names, runs)
    return statistics.median(y / x for x, y in zip(*times, strict=True))


def sufficient_arena(content: bytes) -> int:
    """Returns bytes of an arena in which a file runs, if it runs at all.

    It holds all computed tensors at once, and what the runtime keeps of each operator.
    """
    model = flatbuffer.read(content)
    computed = sum(
        4 * int(np.prod(tensor.shape))
        for graph in model.subgraphs
        for tensor in graph.tensors
        if flatbuffer.constant(model, tensor) is None
    )
    return 2 * computed + len(content) + 2**20


class MicroRunner:
    """File that is loaded into a `MicroRuntime`, called as `litert.runtime.Runner` is.

    Attributes:
        codes: list of int8 arrays. Outputs of the last call, as the file has them.

    Args:
        runtime: a `MicroRuntime`.
        content: the file.
        name: str. Name that it is loaded under.

    Raises:
        MicroError: if the runtime refuses the file.
    """

    def __init__(self, runtime: MicroRuntime, content: bytes, name: str) -> None:
        self._runtime = runtime
        self._name = name
        graph = flatbuffer.read(content).subgraphs[0]
        self._inputs, self._outputs = (
            [_details(graph.tensors[index]) for index in indices]
            for indices in (graph.inputs, graph.outputs)
        )
        self.codes: list[np.ndarray] = []
        runtime("load", name, content, sufficient_arena(content))

    def __call__(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs a batch, and returns one array of floats per output."""
        arrays = [coded(*pair) for pair in zip(batch, self._inputs, strict=True)]
        self.codes = self._runtime("run", self._name, arrays, len(self._outputs))
        return [decoded(*pair) for pair in zip(self.codes, self._outputs, strict=True)]


def _details(tensor):
    """Details of an input or output, as LiteRT describes them."""
    quantization = tensor.quantization
    has_scale = quantization is not None and quantization.scale is not None
    scale = (quantization.scale[0], quantization.zeroPoint[0]) if has_scale else (0, 0)
    return {"dtype": _DTYPES[tensor.type], "quantization": scale}
