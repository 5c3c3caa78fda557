"""Program that runs files in TensorFlow Lite Micro, for `tfcompress.micro.runtime`.

The runtime trusts its files, and an arena that is too small can end its process. So it
runs in this program, which imports nothing but the runtime and NumPy. Requests come by
stdin and results go by stdout, pickled. Before a result, None comes after each step of
the work, so that long work can be told from a run that never ends. Messages of the
runtime go to stderr.
"""

import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tflite_micro import runtime

# Arenas are multiples of that, as their alignment is.
STEP = 16
# A copy of this process takes milliseconds.
_FORK = multiprocessing.get_context("fork")

_loaded: dict[str, "_File"] = {}
_results = os.fdopen(os.dup(1), "wb")


class _File:
    """File in an interpreter.

    Args:
        content: the file.
        arena: int. Bytes of its arena.
        keep: bool. Whether tensors are kept after a run.
    """

    def __init__(self, content: bytes, arena: int, keep: bool = False) -> None:
        config = runtime.InterpreterConfig
        self.interpreter = runtime.Interpreter.from_bytes(
            content,
            arena_size=arena,
            intrepreter_config=(
                config.kPreserveAllTensors if keep else config.kAllocationRecording
            ),
        )
        (graph,) = runtime.convert_bytearray_to_object(content).subgraphs
        details = map(self.interpreter.get_input_details, range(len(graph.inputs)))
        self._zeros = [np.zeros(x["shape"], x["dtype"]) for x in details]

    def set_zeros(self) -> None:
        """Sets all inputs to zeros: a run writes over them, and tokens are indices."""
        for place, zeros in enumerate(self._zeros):
            self.interpreter.set_input(zeros, place)


def _send(message: tuple[bool, Any] | None = None) -> None:
    """Sends a result, or that a step is done."""
    pickle.dump(message, _results)
    _results.flush()


def load(name: str, content: bytes, arena: int) -> None:
    """Loads a file under a name, with an arena of so many bytes."""
    _loaded[name] = _File(content, arena)


def run(name: str, batch: Sequence[np.ndarray], outputs: int) -> list[np.ndarray]:
    """Runs a loaded file, as often as its own batch is in the arrays.

    Args:
        name: name of the loaded file.
        batch: one array per input.
        outputs: number of outputs.

    Returns:
        One array per output.
    """
    interpreter = _loaded[name].interpreter
    size = interpreter.get_input_details(0)["shape"][0]
    results: list[list[np.ndarray]] = [[] for _ in range(outputs)]
    for start in range(0, len(batch[0]), size):
        for place, array in enumerate(batch):
            interpreter.set_input(array[start : start + size], place)
        interpreter.invoke()
        for place, arrays in enumerate(results):
            arrays.append(interpreter.get_output(place))
        _send()
    return [np.concatenate(arrays) for arrays in results]


def tensors(content: bytes, arena: int, indices: Sequence[int]) -> list[np.ndarray]:
    """Returns tensors by their indices after a run on zeros."""
    file = _File(content, arena, keep=True)
    file.set_zeros()
    file.interpreter.invoke()
    return [file.interpreter.GetTensor(index, 0)["tensor_data"] for index in indices]


def least_arena(content: bytes, most: int) -> int:
    """Returns the smallest arena in which a file runs, by bisection.

    Args:
        content: the file.
        most: bytes of an arena in which it runs.
    """
    low, high = 0, -(-most // STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(content, middle * STEP):
            high = middle
        else:
            low = middle
    return high * STEP


def fits(content: bytes, arena: float) -> bool:
    """Returns whether a file runs in an arena of so many bytes."""
    child = _FORK.Process(target=_try_out, args=(content, int(arena)))
    child.start()
    child.join()
    _send()
    return child.exitcode == 0


def _try_out(content, arena):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # errors are expected
    file = _File(content, arena)
    file.set_zeros()
    file.interpreter.invoke()


def milliseconds(names: Sequence[str], runs: int) -> list[list[float]]:
    """Returns the times of loaded files on zeros. The files take turns."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name, spent in times.items():
            _loaded[name].set_zeros()
            start = time.perf_counter()
            _loaded[name].interpreter.invoke()
            spent.append((time.perf_counter() - start) * 1000)
            _send()
    return list(times.values())


_TASKS = (load, run, tensors, fits, least_arena, milliseconds)


def main() -> None:
    """Answers requests `(name of the task, arguments)` until there are no more."""
    tasks: dict[str, Callable] = {task.__name__: task for task in _TASKS}
    os.dup2(2, 1)
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            _send((True, tasks[name](*arguments)))
        except Exception as error:
            _send((False, str(error)))


if __name__ == "__main__":
    main()
