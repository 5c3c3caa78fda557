"""Integer kernels that LiteRT's operators read without decoding.

`python -m benchmarks.native_kernels` measures one layer for each operator, shape and
container. Codes are ternary, which fit all containers. Inputs are float; the operators
round them to 8 bits. Prints a Markdown table with two results:

    error: largest difference from the outputs of the decoded kernel, in standard
        deviations.
    time: multiple of the INT8 kernel's, on one thread, medians of alternating runs.

Containers that are right and no slower belong into
`tfcompress.litert.kernels.NATIVE_BITS`.
"""

import dataclasses

import keras
import numpy as np

from tfcompress.layers import PackedConv2D, PackedDense, PackedDepthwiseConv2D
from tfcompress.litert import flatbuffer, float_tflite, latency
from tfcompress.litert.kernels import kernel_tensor, packed_kernels
from tfcompress.litert.pack import find_kernels
from tfcompress.litert.runtime import Runner

CONTAINERS = (8, 4, 2)
RUNS = 300
LAYERS = (
    ((32, 32, 16), PackedConv2D, (16, 3)),
    ((8, 8, 64), PackedConv2D, (64, 3)),
    ((8, 8, 128), PackedConv2D, (128, 1)),
    ((16, 16, 64), PackedDepthwiseConv2D, (3,)),
    ((64,), PackedDense, (10,)),
    ((800,), PackedDense, (500,)),
    ((2048,), PackedDense, (1000,)),
)


def main():
    print("| layer | input | container | bytes | error | time |")
    print("|---|---|---|---|---|---|")
    for shape, layer_class, arguments in LAYERS:
        model = one_layer(shape, layer_class(*arguments, kernel_bits=2))
        x = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
        expected = keras.ops.convert_to_numpy(model(x))
        contents = {bits: native_file(model, bits) for bits in CONTAINERS}
        errors = {
            bits: error(content, x, expected) for bits, content in contents.items()
        }
        running = [bits for bits in CONTAINERS if errors[bits] is not None]
        spent = latency([contents[bits] for bits in running], RUNS)
        times = dict(zip(running, spent, strict=True))
        for bits in CONTAINERS:
            print(
                f"| {layer_class.__name__} {arguments} | {' x '.join(map(str, shape))} "
                f"| INT{bits} | {len(contents[bits]):,} | "
                + (
                    f"{errors[bits]:.3f} | {times[bits] / times[8]:.2f} |"
                    if bits in times
                    else "does not run | |"
                )
            )


def one_layer(shape, layer):
    """Returns a model of one packed layer with random ternary codes."""
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    layer.set_kernel(
        rng.integers(-1, 2, layer.kernel_shape),
        rng.uniform(0.5, 1.5, layer.kernel_scale.shape),
    )
    return model


def native_file(model, bits):
    """Returns a `.tflite` whose operator reads codes in a container of `bits` bits."""
    kernels = [dataclasses.replace(k, bits=bits) for k in packed_kernels(model)]
    file = flatbuffer.read(float_tflite(model))
    for graph, index, found in find_kernels(file, kernels, native=False):
        graph.tensors[index] = kernel_tensor(file, found)
    flatbuffer.strip(file)
    return flatbuffer.write(file)


def error(content, x, expected):
    """Returns the largest difference in standard deviations; None if it cannot run."""
    try:
        (received,) = Runner(content)([x])
    except ValueError:
        return None
    return float(np.abs(received - expected).max() / expected.std())


if __name__ == "__main__":
    main()
