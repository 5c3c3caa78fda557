"""Damaged `.tflite` files for the readers: `python -m benchmarks.fuzz_readers`.

Each file is read as `tfcompress.inspect` and `tfcompress.litert.check` read it, before
any runtime. A reader has to return, or to raise a ValueError that tells of the file,
within `SECONDS` and without large memory. The program names the first file that does
otherwise, by its number, and exits with 1.
"""

import argparse
import resource
import sys
import time

import numpy as np

from tfcompress.litert import flatbuffer
from tfcompress.litert.contents import constants
from tfcompress.litert.stored import kernel_tensors

SECONDS = 2.0
MOST_BYTES = 2 * 2**30
# Values that mean something in many places.
WORDS = (0, 1, 2, 4, 127, 2**16, 2**31 - 1, 2**32 - 1, 2**32 - 4)
TABLES = ("operatorCodes", "subgraphs", "buffers", "signatureDefs", "metadata")


def mutated(content, seed):
    """Returns a damaged copy of a file's bytes.

    Args:
        content: bytes of a `.tflite`.
        seed: int. Number of the copy.
    """
    rng = np.random.default_rng(seed)
    kind = seed % 5
    if kind == 4:
        return _mutated_object(content, rng)
    data = bytearray(content)
    if kind == 3:
        return bytes(data[: rng.integers(len(data))])
    # Tables and offsets are near the end of files, and data before them.
    first = 0 if rng.random() < 0.5 else max(0, len(data) - 4000)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(first, len(data) - 4))
        if kind == 0:
            data[place] ^= int(rng.integers(1, 256))
        elif kind == 1:
            place -= place % 4
            word = int(rng.choice(WORDS))
            data[place : place + 4] = word.to_bytes(4, "little")
        else:  # an offset, or a vector, of another place
            other = int(rng.integers(first, len(data) - 4))
            data[place : place + 4] = data[other : other + 4]
    return bytes(data)


def _mutated_object(content, rng):
    """Sets one field of one table to something else."""
    model = flatbuffer.read(content)
    graph = model.subgraphs[0]
    tables = [model, graph, *graph.tensors, *graph.operators, *model.buffers]
    tables += [x.quantization for x in graph.tensors if x.quantization]
    tables += model.signatureDefs
    table = tables[rng.integers(len(tables))]
    names = [name for name, value in vars(table).items() if value is not None]
    name = names[rng.integers(len(names))]
    value = getattr(table, name)
    if isinstance(value, bytes):
        setattr(table, name, [None, b"[red]", b"\xff\x00\x1b[2J"][rng.integers(3)])
    elif isinstance(value, np.ndarray) and value.size:
        changed = value.copy()
        limits = (
            (-2, 2**30) if value.dtype.kind in "iu" and value.itemsize > 1 else (0, 2)
        )
        changed[rng.integers(value.size)] = limits[rng.integers(2)]
        options = [None, value[:0], changed, np.tile(value, 2)]
        setattr(table, name, options[rng.integers(4)])
    elif isinstance(value, (int, np.integer)):
        setattr(table, name, [0, 1, 17, 99][rng.integers(4)])
    else:
        setattr(table, name, None)
    try:
        return flatbuffer.write(model)
    except Exception:  # what cannot be written is no damage of a file
        return content


def read_all(content):
    """Reads a file as all readers do; returns whether they accept it."""
    try:
        constants(content)
        kernel_tensors(content)
    except ValueError as error:
        if "Received: " not in str(error):
            raise
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help=".tflite files to damage")
    parser.add_argument("--count", type=int, default=100_000, help="copies of each")
    parser.add_argument("--first", type=int, default=0, help="number of the first copy")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for path in options.files:
        with open(path, "rb") as stream:
            content = stream.read()
        accepted, slowest = 0, 0.0
        for seed in range(options.first, options.first + options.count):
            damaged = mutated(content, seed)
            start = time.process_time()  # other programs may run
            try:
                accepted += read_all(damaged)
            except Exception as error:
                sys.exit(f"{path}, copy {seed}: {type(error).__name__}: {error}")
            taken = time.process_time() - start
            slowest = max(slowest, taken)
            if taken > SECONDS:
                sys.exit(f"{path}, copy {seed}: {taken:.1f} s")
        print(
            f"{path}: {options.count:,} copies, {accepted:,} of them still read, "
            f"{slowest:.2f} s for the slowest"
        )


if __name__ == "__main__":
    main()
