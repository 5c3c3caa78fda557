"""Times of operators that read kernels, by container and class of shapes.

`python -m benchmarks.devices.operator_costs` measures layers of common shapes in LiteRT
on one thread. Each is measured with float and with int8 activations. Its forms are the
operator with a float kernel, the same with an INT8 kernel, and FULLY_CONNECTED with an
INT4 or INT2 kernel. The runs of all forms of a layer alternate.

It writes `tfcompress/litert/lowering/operator_costs.json`, which the export reads.
Formulas have coefficients of at least zero, fitted to relative errors. "error" is the
median relative error of a formula. Run it on the processor that files are for, or with
another version of LiteRT, and export with the new table.
"""

import importlib.metadata
import itertools
import json
import platform
import re
import time

import numpy as np

from tests.litert.lowering.one_layer import OneLayer, as_dense, made, random_input
from tfcompress.litert import flatbuffer
from tfcompress.litert.lowering.costs import PATH
from tfcompress.litert.lowering.reader import readers
from tfcompress.litert.runtime import Interpreter

RUNS = 150
# Quantile of the times: other work on the machine only makes runs longer.
QUANTILE = 0.2
# (height and width of the input, its channels, output channels).
POINTWISE = (
    [(112, 32, 16), (112, 16, 96), (56, 96, 24), (56, 24, 144), (56, 144, 24)]
    + [(28, 144, 32), (28, 32, 192), (28, 192, 32), (14, 192, 64), (14, 64, 384)]
    + [(14, 384, 64), (14, 384, 96), (14, 96, 576), (14, 576, 96), (7, 576, 160)]
    + [(7, 160, 960), (7, 960, 160), (7, 960, 320), (7, 320, 1280)]
    + [(56, 64, 64), (56, 64, 256), (56, 256, 64), (28, 128, 512), (28, 512, 128)]
    + [(14, 256, 1024), (14, 1024, 256), (7, 512, 2048), (7, 2048, 512)]
    + [(8, 64, 128), (16, 32, 64), (32, 16, 32), (4, 128, 256), (12, 64, 64)]
)
STRIDED = (
    [(56, 256, 512), (56, 256, 128), (28, 512, 1024), (28, 512, 256)]
    + [(14, 1024, 2048), (14, 1024, 512), (32, 16, 32), (16, 32, 64), (32, 64, 128)]
    + [(28, 128, 256), (14, 256, 512)]
)
# (height and width, channels, output channels, window, stride).
WINDOWS = (
    [(32, 16, 16, 3, 1), (16, 32, 32, 3, 1), (8, 64, 64, 3, 1), (32, 16, 32, 3, 2)]
    + [(16, 32, 64, 3, 2), (56, 64, 64, 3, 1), (28, 128, 128, 3, 1)]
    + [(14, 256, 256, 3, 1), (7, 512, 512, 3, 1), (56, 128, 128, 3, 2)]
    + [(28, 256, 256, 3, 2), (14, 512, 512, 3, 2), (16, 64, 128, 3, 1)]
    + [(8, 128, 128, 3, 1), (4, 256, 256, 3, 1), (14, 64, 192, 5, 1)]
    + [(28, 32, 64, 5, 1), (14, 96, 208, 3, 1), (32, 3, 16, 3, 1), (112, 3, 32, 3, 2)]
)
DEPTHWISE = (
    [(112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1)]
    + [(28, 192, 2), (14, 384, 1), (14, 576, 1), (14, 576, 2), (7, 960, 1)]
    + [(16, 64, 1), (8, 128, 1)]
)
VECTORS = [(64, 10), (256, 64), (128, 128), (800, 500), (512, 512), (1280, 1000)] + [
    (2048, 1000),
    (640, 128),
    (1024, 256),
    (2048, 512),
    (3136, 128),
]
CONTAINERS = {4: "INT4", 2: "INT2"}
FORMULAS = {
    "float": ("FLOAT32", "INT8", "INT4", "INT2"),
    "int8": ("INT8", "INT4", "INT2"),
}


def main():
    measured = []
    for layer in layers():
        for int8 in (False, True):
            measured += measure(layer, int8)
            print(measured[-1], flush=True)
    result = {
        "litert": importlib.metadata.version("ai-edge-litert"),
        "machine": machine(),
        "sizes": ["1", "multiplications", "weights", "inputs and outputs", "patches"],
        "measured": "sizes, then microseconds",
        "formulas": formulas(measured),
    }
    text = json.dumps(result, indent=1)
    # Lists of numbers stand in one line.
    text = re.sub(r"\[[^][{}]*\]", lambda x: " ".join(x[0].split()), text)
    PATH.write_text(text + "\n")


def layers():
    """Yields a `OneLayer` for each shape."""
    for size, c, f in POINTWISE:
        yield OneLayer("CONV_2D", (1, size, size, c), f)
    for size, c, f in STRIDED:
        yield OneLayer("CONV_2D", (1, size, size, c), f, stride=(2, 2))
    for size, c, f, n, s in WINDOWS:
        yield OneLayer("CONV_2D", (1, size, size, c), f, (n, n), (s, s))
    for size, c, s in DEPTHWISE:
        yield OneLayer("DEPTHWISE_CONV_2D", (1, size, size, c), c, (3, 3), (s, s))
    for c, f in VECTORS:
        yield OneLayer("FULLY_CONNECTED", (1, c), f)


def measure(layer, int8):
    """Returns the times of all forms of a layer, a list of dicts."""
    forms = {}
    reader = None
    for name in FORMULAS["int8" if int8 else "float"]:
        bits = {name: bits for bits, name in CONTAINERS.items()}.get(name, 8)
        form = OneLayer(
            **{**vars(layer), "int8": int8, "bits": bits, "decoded": name == "FLOAT32"}
        )
        model, found = made(form)
        (reader,) = readers(model, model.subgraphs[0], {})
        if name in ("FLOAT32", "INT8"):
            content = flatbuffer.write(model)
        elif reader.obstacle(bits):
            continue
        else:
            content = as_dense(model, found, bits)
        forms[name] = interpreter(content, random_input(form))
    times = {name: [] for name in forms}
    for _ in range(RUNS):
        for name, runner in forms.items():
            start = time.perf_counter()
            runner.invoke()
            times[name].append(1e6 * (time.perf_counter() - start))
    return [
        {
            "shape_class": reader.shape_class,
            "activations": reader.activations,
            "container": name,
            "sizes": [round(size) for size in reader.sizes],
            "microseconds": round(float(np.quantile(spent, QUANTILE)), 2),
        }
        for name, spent in times.items()
    ]


def interpreter(content, x):
    """Returns an interpreter that has run once on an input."""
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], x)
    runner.invoke()
    return runner


def formulas(measured):
    """Fits a formula to the rows of each class, activations and container."""

    def key(row):
        return row["shape_class"], row["activations"], row["container"]

    found = []
    for names, rows in itertools.groupby(sorted(measured, key=key), key):
        rows = list(rows)
        sizes = np.array([row["sizes"] for row in rows])
        times = np.array([row["microseconds"] for row in rows])
        coefficients = not_negative(sizes / times[:, None], np.ones(len(rows)))
        errors = np.abs(sizes @ coefficients / times - 1)
        found.append(
            {
                "shape_class": names[0],
                "activations": names[1],
                "container": names[2],
                "coefficients": [float(f"{value:.4g}") for value in coefficients],
                "error": round(float(np.median(errors)), 3),
                "measured": [[*row["sizes"], row["microseconds"]] for row in rows],
            }
        )
    return found


def not_negative(matrix, target):
    """Returns the least squares solution without negative coefficients."""
    units = np.abs(matrix).max(axis=0)
    best, least = None, np.inf
    for used in itertools.product([False, True], repeat=matrix.shape[1]):
        used = np.array(used)
        if not used.any():
            continue
        solved = np.linalg.lstsq(matrix[:, used] / units[used], target, rcond=None)[0]
        full = np.zeros(matrix.shape[1])
        full[used] = solved / units[used]
        loss = np.square(matrix @ full - target).sum()
        if (solved >= 0).all() and loss < least - 1e-9:
            best, least = full, loss
    return best


def machine():
    """Returns the architecture, and the instructions for integers that it has."""
    flags = ""
    try:
        with open("/proc/cpuinfo") as stream:
            flags = stream.read()
    except OSError:
        pass
    known = [
        name
        for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
        if name in flags
    ]
    return " ".join([platform.machine(), *known])


if __name__ == "__main__":
    main()
