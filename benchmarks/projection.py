"""Seconds of a projection onto a size: `python -m benchmarks.projection [--flags]`.

Times each part of a projection, and the joint choice of zeros and bits that follows
ADMM. The network has AlexNet's layer sizes, 61 million weights drawn from normal
distributions. Codebooks are made of all weights, as if none were zero: the worst case.

For comparison, k-means that computes every distance between weights and centroids is
timed in the same process on a part of the weights, with the same number of rounds.
"""

import math
import resource
import time

import numpy as np
from absl import app, flags

from recipes.common.arguments import refuse_arguments
from tfcompress.cost.knapsack import multiple_choice_knapsack
from tfcompress.quantizers.clustering import SortedNonZeros, kmeans, uniform_step
from tfcompress.schemes.size_constrained.allocation import keep_largest
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.rate_distortion import operating_points

FLAGS = flags.FLAGS
# Kernel shapes of torchvision's AlexNet.
ALEXNET = {
    "conv1": (11, 11, 3, 64),
    "conv2": (5, 5, 64, 192),
    "conv3": (3, 3, 192, 384),
    "conv4": (3, 3, 384, 256),
    "conv5": (3, 3, 256, 256),
    "fc6": (9216, 4096),
    "fc7": (4096, 4096),
    "fc8": (4096, 1000),
}
KMEANS_BITS, UNIFORM_BITS = tuple(range(1, 9)), tuple(range(2, 9))

flags.DEFINE_integer(
    "naive_size", 1_000_000, "Number of weights of the naive k-means.", lower_bound=1
)
flags.DEFINE_integer("naive_bits", 4, "Bits of the naive k-means.", 1, 8)
flags.DEFINE_float("kept", 0.1, "Share of the weights' bits in the budget.", 0.001, 1)


class Timer:
    """Timer of named parts.

    Attributes:
        seconds: dict. Name to a float array (wall-clock, processor) of seconds.
    """

    def __init__(self):
        self.seconds = {}

    def __call__(self, name, function, *args):
        """Returns `function(*args)`, and adds its seconds to those of `name`."""
        start = np.array([time.perf_counter(), time.process_time()])
        result = function(*args)
        passed = np.array([time.perf_counter(), time.process_time()]) - start
        self.seconds[name] = self.seconds.get(name, 0.0) + passed
        return result


def naive_kmeans(x, centroids, rounds):
    """Returns centroids after Lloyd's rounds with all distances; zero stays zero.

    Args:
        x: float (N,). Weights.
        centroids: float (K,). Sorted centroids to start from.
        rounds: int. Number of rounds.
    """
    for _ in range(rounds):
        cells = np.argmin(np.abs(x[:, None] - centroids), axis=1)
        counts = np.bincount(cells, minlength=len(centroids))
        sums = np.bincount(cells, x, len(centroids))
        means = np.where(counts > 0, sums / np.maximum(counts, 1), centroids)
        centroids = np.where(centroids == 0, 0, means).astype(np.float32)
    return centroids


def compare_with_naive(x, bits):
    """Prints the processor seconds of both k-means, and their ratio."""
    rounds = 5
    start = np.append(np.linspace(x.min(), x.max(), 2**bits), 0)
    timer = Timer()
    timer("naive", naive_kmeans, x, np.sort(start).astype(np.float32), rounds)
    values = timer("sorted", SortedNonZeros, x)
    timer("sorted", kmeans, values, bits, rounds, 0.0)
    naive, ours = timer.seconds["naive"][1], timer.seconds["sorted"][1]
    print(
        f"{x.size:,} weights, {bits} bits, {rounds} rounds: naive {naive:.2f} s, "
        f"sorted {ours:.3f} s with sorting and two starts, ratio {naive / ours:.0f}"
    )


def project(weights):
    """Returns the seconds of each part of one projection, as `Timer` has them."""
    timer, losses = Timer(), {}
    for name, x in weights.items():
        values = timer("sorting", SortedNonZeros, x)
        losses[name] = [
            timer(f"k-means, {bits} bits", kmeans, values, bits)[1]
            for bits in KMEANS_BITS
        ]
        for bits in UNIFORM_BITS:
            timer(f"uniform step, {bits} bits", uniform_step, values, bits)
    bits = {name: 2 + number % 4 for number, name in enumerate(weights)}
    budget = FLAGS.kept * sum(bits[name] * x.size for name, x in weights.items())
    masks = timer(
        "sparse projection", keep_largest, weights, bits, budget, dict.fromkeys(bits, 1)
    )
    costs = {
        name: np.count_nonzero(mask) * np.array(KMEANS_BITS)
        for name, mask in masks.items()
    }
    timer("allocation", multiple_choice_knapsack, costs, losses, budget)
    for codebook, widths in (("kmeans", KMEANS_BITS), ("uniform", UNIFORM_BITS)):
        counted = SizeBudget(budget, "xz_bytes", codebook)
        points = {
            name: timer(
                f"{codebook}, joint choice", operating_points, x, 10, counted, widths
            )
            for name, x in weights.items()
        }
        timer(
            f"{codebook}, joint choice",
            multiple_choice_knapsack,
            {name: x.costs for name, x in points.items()},
            {name: x.losses for name, x in points.items()},
            budget,
            True,  # off the hull, as the search does
        )
    return timer.seconds


def main(argv):
    refuse_arguments(argv)
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in ALEXNET.items():
        scale = math.prod(shape[:-1]) ** -0.5
        weights[name] = scale * rng.standard_normal(shape, np.float32)
    compare_with_naive(weights["fc6"].ravel()[: FLAGS.naive_size], FLAGS.naive_bits)

    size = sum(x.size for x in weights.values())
    seconds = project(weights)
    seconds["together"] = sum(seconds.values())
    print(f"{len(weights)} layers, {size:,} weights: seconds, wall-clock and processor")
    for name, (passed, worked) in seconds.items():
        print(f"  {name:<22}{passed:8.3f}{worked:8.3f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(x.nbytes for x in weights.values())
    print(
        f"  peak memory {peak / 2**30:.2f} GiB, of that weights {held / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    app.run(main)
