"""Which integer kernels LiteRT's operators read themselves, and how fast:
`python -m benchmarks.native_kernels`.

For each operator, shape and container, one layer with ternary codes, which fit all
containers: how far its outputs are from those of the decoded kernel, in standard
deviations, and its time as a multiple of the INT8 kernel's, on one thread, medians of
alternating runs. What is right and no slower goes into
`tfcompress.litert.kernels.NATIVE_BITS`. Inputs are float; the operators round them to 8
bits. Prints a Markdown table.
"""

import dataclasses

import keras
import numpy as np

from tfcompress.layers import PackedConv2D, PackedDense, PackedDepthwiseConv2D
from tfcompress.litert import flatbuffer, float_tflite, latency
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.pack import find_kernels, kernel_tensor
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
    """A model of one packed layer with random ternary codes."""
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    layer.set_kernel(
        rng.integers(-1, 2, layer.kernel_shape),
        rng.uniform(0.5, 1.5, layer.kernel_scale.shape),
    )
    return model


def native_file(model, bits):
    """A `.tflite` whose operator reads the codes in a container of so many bits."""
    kernels = [dataclasses.replace(k, bits=bits) for k in packed_kernels(model)]
    file = flatbuffer.read(float_tflite(model))
    for graph, index, found in find_kernels(file, kernels, native=False):
        graph.tensors[index] = kernel_tensor(file, found)
    flatbuffer.strip(file)
    return flatbuffer.write(file)


def error(content, x, expected):
    """Largest difference in standard deviations; None if LiteRT cannot run it."""
    try:
        (received,) = Runner(content)([x])
    except ValueError:
        return None
    return float(np.abs(received - expected).max() / expected.std())


if __name__ == "__main__":
    main()
