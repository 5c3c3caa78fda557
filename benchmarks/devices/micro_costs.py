"""Times of DECODE in TensorFlow Lite Micro: `python -m benchmarks.devices.micro_costs`.

Prints the nanoseconds that each encoding takes for a weight, and those of a
multiply-add in the operators that read kernels. `tfcompress.micro.costs` has them.
"""

import statistics
from collections.abc import Iterable

import keras
import numpy as np
from absl import app
from keras import layers as kl

from recipes.common.arguments import refuse_arguments
from tests.litert.packed_models import make_packed
from tests.micro.decoding import decoding_file
from tfcompress.cost import layer_costs, total_cost
from tfcompress.litert.kernels import packed_kernels
from tfcompress.litert.proof.samples import Samples
from tfcompress.micro.encodings import huffman, lookup, pruning
from tfcompress.micro.encodings.encoded import Encoded
from tfcompress.micro.exporter import int8_file
from tfcompress.micro.runtime import MicroRuntime, sufficient_arena

# Output channels and weights of each.
SHAPE = (256, 1024)
RUNS = 30
OPERATORS = {
    "FULLY_CONNECTED": (lambda: kl.Dense(256), (1024,)),
    "CONV_2D, 1x1": (lambda: kl.Conv2D(128, 1), (16, 16, 128)),
    "CONV_2D, 3x3": (lambda: kl.Conv2D(64, 3, padding="same"), (16, 16, 64)),
    "DEPTHWISE_CONV_2D": (lambda: kl.DepthwiseConv2D(3), (32, 32, 64)),
}


def encodings() -> Iterable[tuple[str, Encoded]]:
    """Yields names and encoded kernels of random weights."""
    rng = np.random.default_rng(0)
    for bits in range(1, 8):
        codes = rng.integers(0, 2**bits, SHAPE).astype(np.int8)
        yield f"look-up, {bits} bits", lookup.encode(codes, 0)
    for zeros in (0.4, 0.8):
        codes = rng.choice(np.array([-1, 0, 1], np.int8), SHAPE, p=_shares(zeros))
        yield f"Huffman, ternary, {zeros:.0%} zeros", huffman.encode(codes)
        yield f"pruning, {zeros:.0%} zeros", pruning.encode(codes)
    codes = np.clip(np.round(rng.normal(size=SHAPE) * 3), -7, 7).astype(np.int8)
    yield "Huffman, 4 bits", huffman.encode(codes)


def _shares(zeros):
    return [(1 - zeros) / 2, zeros, (1 - zeros) / 2]


def nanoseconds(runtime: MicroRuntime, content: bytes, count: float) -> float:
    """Returns the median time of a file, divided by a count."""
    runtime("load", "file", content, sufficient_arena(content))
    (times,) = runtime("milliseconds", ("file",), RUNS)
    return 1e6 * statistics.median(times) / count


def operator_file(make, shape) -> tuple[bytes, float]:
    """Returns an int8 file of one layer, and its multiply-adds."""
    inputs = keras.Input(shape)
    net = keras.Model(inputs, make()(inputs))
    macs = total_cost(layer_costs(net)).macs
    model = make_packed(net, (8,))
    samples = Samples(model, np.random.default_rng(0).normal(size=(4, *shape)))
    content, *_ = int8_file(model, packed_kernels(model), samples)
    return content, macs


def main(argv):
    refuse_arguments(argv)
    with MicroRuntime() as runtime:
        print("| Operator | ns a multiply-add |\n|---|---:|")
        for name, (make, shape) in OPERATORS.items():
            content, macs = operator_file(make, shape)
            print(f"| {name} | {nanoseconds(runtime, content, macs):.2f} |")
        print("\n| DECODE | ns a weight |\n|---|---:|")
        for name, encoded in encodings():
            content = decoding_file([encoded], [SHAPE], [0])
            spent = nanoseconds(runtime, content, np.prod(SHAPE))
            print(f"| {name} | {spent:.2f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
