"""Latency of a `.tflite`."""

import statistics
import time
from collections.abc import Sequence

import numpy as np

from tfcompress.litert.runtime import File, Runner
from tfcompress.progress_bar import progress_bar


def latency(
    files: Sequence[File],
    runs: int = 50,
    num_threads: int = 1,
    shapes: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """Measures the latencies of `.tflite` files for one sample.

    The runs of the files alternate, so that other load slows all of them alike.

    Args:
        files: list of paths or contents.
        runs: int. Timed runs of each file, after three untimed ones.
        num_threads: int. Threads of the runtime's CPU kernels.
        shapes: shape of each input with the batch axis, such as [(1, 224, 224, 3)].
            Files whose inputs have free sizes need it.

    Returns:
        Median time of each file, in milliseconds.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if it cannot be run, or has free sizes and `shapes` is None.
    """
    runners = [Runner(file, num_threads) for file in files]
    samples = [ones(runner, shapes) for runner in runners]
    times: list[list[float]] = [[] for _ in runners]
    with progress_bar("Latencies in LiteRT", runs + 3) as bar:
        for run in bar.over(range(-3, runs)):
            for runner, sample, spent in zip(runners, samples, times, strict=True):
                start = time.perf_counter()
                runner(sample)
                if run >= 0:
                    spent.append((time.perf_counter() - start) * 1000)
    return [statistics.median(spent) for spent in times]


def ones(
    runner: Runner, shapes: Sequence[Sequence[int]] | None = None
) -> list[np.ndarray]:
    """Returns an array of ones for each input of a file.

    Args:
        runner: `Runner` of the file.
        shapes: shape of each input, or None for those of one sample.

    Raises:
        ValueError: if `shapes` is None and an input has free sizes.
    """
    details = [x for _, x in runner.inputs]
    if shapes is None:
        is_free = [bool((x["shape_signature"][1:] < 0).any()) for x in details]
        if any(is_free):
            signatures = [tuple(x["shape_signature"].tolist()) for x in details]
            raise ValueError(
                f"`shapes` is expected for a file of free sizes. Received: "
                f"shapes=None, for inputs of {signatures}, where -1 is free. Give one "
                "shape per input with the batch axis, such as shapes=[(1, 224, 224, "
                "3)]."
            )
        shapes = [x["shape"] for x in details]
    return [
        np.ones(shape, x["dtype"]) for shape, x in zip(shapes, details, strict=True)
    ]
