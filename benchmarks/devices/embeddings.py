"""Bytes, memory and latency of the forms of an embedding's table in LiteRT.

`python -m benchmarks.devices.embeddings` prints the table of `docs/files.md`. The
embedding has 20000 rows of 64 columns, of which a run reads 32. The forms are the float
table, its codes decoded as a whole by DEQUANTIZE, and codes of which rows are looked up
(`tfcompress.litert.look_up`). "First run" includes loading the file. The rows that a
file returns are compared with codes times scales.
"""

import statistics
import time

import keras
import numpy as np

from tfcompress.layers import PackedEmbedding
from tfcompress.litert import flatbuffer, peak_memory
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.kernels import decode, packed_kernels
from tfcompress.litert.look_up import as_looked_up
from tfcompress.litert.pack import find_kernels
from tfcompress.litert.runtime import Runner

ROWS, COLUMNS, WORDS = 20000, 64, 32
RUNS = 25


def embedding(bits: int) -> tuple[keras.Model, np.ndarray]:
    """Returns a model of one packed embedding, and its decoded table."""
    words = keras.Input((WORDS,), dtype="int32")
    layer = PackedEmbedding(ROWS, COLUMNS, kernel_bits=bits)
    model = keras.Model(words, layer(words))
    rng = np.random.default_rng(bits)
    codes = rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (ROWS, COLUMNS))
    layer.set_kernel(codes, rng.uniform(0.01, 0.02, (ROWS, 1)))
    return model, keras.ops.convert_to_numpy(layer.kernel)


def file(model: keras.Model, form: str) -> bytes:
    """Returns a file with the table in a form."""
    content = float_tflite(model)
    if form == "float":
        return content
    parsed = flatbuffer.read(content)
    ((graph, index, found),) = find_kernels(parsed, packed_kernels(model))[2]
    if form == "decoded":
        decode(parsed, graph, index, found)
    else:
        as_looked_up(parsed, graph, index, found)
    flatbuffer.strip(parsed)
    return flatbuffer.write(parsed)


def first_run(content: bytes, words: np.ndarray) -> float:
    """Returns the median milliseconds to load a file and run it once."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        Runner(content)([words])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(ROWS, size=(1, WORDS)).astype("int32")
    print("| table | form | bytes | arena | first run, ms | run, ms | exact |")
    print("|---|---|---|---|---|---|---|")
    for bits in (8, 4, 2):
        model, table = embedding(bits)
        for form in ("float", "decoded", "looked up"):
            if form == "float" and bits != 8:
                continue
            content = file(model, form)
            runner, times = Runner(content), []
            for _ in range(RUNS):
                start = time.perf_counter()
                (rows,) = runner([words])
                times.append(1000 * (time.perf_counter() - start))
            name = "FLOAT32" if form == "float" else f"INT{bits}"
            print(
                f"| {name} | {form} | {len(content):,} "
                f"| {peak_memory(content, [words.shape]):,} "
                f"| {first_run(content, words):.2f} | {statistics.median(times):.3f} "
                f"| {'yes' if (rows == table[words]).all() else 'no'} |"
            )


if __name__ == "__main__":
    main()
