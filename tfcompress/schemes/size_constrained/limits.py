"""Smallest and largest sizes that a search can make use of, before training."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import layers

from tfcompress.arguments import warn_caller
from tfcompress.core.student import Student
from tfcompress.graph.graph import Graph
from tfcompress.graph.rounded_norms import move_statistics
from tfcompress.layers.kernel import kernel_of
from tfcompress.quantizers.clustering import SAMPLES, SortedNonZeros, uniform_step
from tfcompress.quantizers.packing import code_limit
from tfcompress.schemes.size_constrained.allocation import set_smallest
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.codebooks import MIN_WEIGHTS
from tfcompress.schemes.size_constrained.overhead import estimated_overhead

if TYPE_CHECKING:
    from tfcompress.schemes.size_constrained.scheme import SizeConstrained

# A budget of this multiple of the smallest size as estimated can certainly be met, and
# one of this share of the largest is certainly used up.
_CLEARLY, _CERTAINLY_USED = 1.5, 0.7
# Weights of all layers that show whether a budget is certainly used up.
_SAMPLE = 2**18
# Layers of at most two operators.
_PLAIN_LAYERS = (
    layers.Activation,
    layers.Add,
    layers.AveragePooling2D,
    layers.BatchNormalization,
    layers.Concatenate,
    layers.Conv1D,
    layers.Conv2D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.Dropout,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.InputLayer,
    layers.MaxPooling2D,
    layers.Multiply,
    layers.ReLU,
    layers.Reshape,
    layers.Rescaling,
    layers.ZeroPadding2D,
)
# Bytes of the operators of such a layer at most, by whether they count after xz, and of
# any other: a layer normalization is a dozen operators.
_PLAIN_GRAPH_BYTES, _MOST_GRAPH_BYTES = {True: 100, False: 700}, 1500
# Bytes by which the smallest file of a training may exceed that of random weights,
# per file and per kernel. After xz the places of weights cost more or less, and in
# flash equal scales are stored once.
_MARGIN, _MARGIN_PER_KERNEL = 16, 4
# Share by which a budget may exceed the largest size without a warning.
_UNUSED = 0.02


class Limits:
    """Limits of the sizes that a search can reach for one model.

    The estimates make no file, and are rough. `smallest` and `largest` make one.

    Args:
        scheme: the `SizeConstrained`.
        model: the user's model, as planned.
        coded: layers of the model whose kernels get codebooks.
    """

    def __init__(
        self, scheme: "SizeConstrained", model: keras.Model, coded: Collection[Any]
    ) -> None:
        self.scheme = scheme
        self.model = model
        self.coded = coded
        self._budget = budget_of(scheme, model, coded)

    def is_clearly_possible(self) -> bool:
        """Whether the budget is far above the smallest size as estimated."""
        sizes = [math.prod(kernel_of(layer).shape) for layer in self.coded]
        bits = self.scheme.widths()[0]
        least = self._budget.least_size(sizes, MIN_WEIGHTS, bits)
        if self._budget.unit != "value_bits":
            least += self._most_graph_bytes()
        return self._budget.total > _CLEARLY * least

    def _most_graph_bytes(self):
        """Bytes of all operators at most."""
        plain = _PLAIN_GRAPH_BYTES[self._budget.unit == "xz_bytes"]
        return sum(
            plain if type(layer) in _PLAIN_LAYERS else _MOST_GRAPH_BYTES
            for layer in Graph(self.model).layers().values()
        )

    def is_certainly_used(self) -> bool:
        """Whether the budget is clearly below the largest size as estimated."""
        kernels = {x.name: np.asarray(kernel_of(x), np.float32) for x in self.coded}
        step = math.ceil(sum(x.size for x in kernels.values()) / _SAMPLE)
        codes = {n: (_finest_codes(x.ravel()[::step]), 8) for n, x in kernels.items()}
        overhead = self._budget.overhead
        largest = overhead + step * (self._budget.estimate_of(codes) - overhead)
        return self._budget.total < _CERTAINLY_USED * largest

    def smallest(self) -> float:
        """Returns a size that every training can meet, in the budget's unit.

        It is that of the smallest allocation, with weights that are as hard to compress
        as trained ones.
        """
        probe = self.scheme.probe(self.model)
        _vary(probe)
        set_smallest(probe.size_space.codebooks)
        size = self._size_of(probe)
        if self._budget.unit in ("xz_bytes", "flash_bytes"):
            size += _MARGIN + _MARGIN_PER_KERNEL * len(self.coded)
        return size

    def largest(self) -> float:
        """Returns the size with the most bits for every weight, in the budget's unit.

        Kernels are the present ones, so that a training changes it a little.
        """
        probe = self.scheme.probe(self.model)
        codebooks = probe.size_space.codebooks
        kernels = codebooks.kernels()
        _vary(probe)
        codebooks.set_kernels(kernels)
        bits = dict.fromkeys(kernels, codebooks.bit_widths[-1])
        masks = {name: np.ones(x.shape, bool) for name, x in kernels.items()}
        codebooks.fit(kernels, masks, bits)
        return self._size_of(probe)

    def _size_of(self, probe):
        if self.scheme.rounds_norms():
            move_statistics(probe)
        return self.scheme.size_of(probe)


def budget_of(
    scheme: "SizeConstrained", model: keras.Model, coded: Collection[Any]
) -> SizeBudget:
    """Returns the budget of a model or student, with an estimated overhead.

    Args:
        scheme: the `SizeConstrained`.
        model: the float model, or its student.
        coded: layers of the model whose kernels get codebooks.
    """
    budget = SizeBudget(scheme.total(model), scheme.unit(), scheme.codebook)
    if scheme.value_bits is None:
        compressed = scheme.compression == "xz"
        budget.overhead = estimated_overhead(model, coded, compressed)
    return budget


def check_limits(
    scheme: "SizeConstrained", model: keras.Model, coded: Collection[Any]
) -> None:
    """Checks that a budget can be met, and that a search can make use of all of it.

    Args: see `budget_of`.

    Raises:
        ValueError: if the smallest possible size exceeds the budget, or there are no
            layers to meet it by.

    Warns:
        UserWarning: if the budget exceeds the size with the most bits.
    """
    if not coded:
        raise ValueError(
            "At least one layer without an override is expected, as a size is met by "
            f"the other layers. Received: {scheme.received()} and overrides for all "
            "layers that can be compressed."
        )
    limits, total = Limits(scheme, model, coded), scheme.total(model)
    unit = scheme.unit().replace("_", " ")
    if not limits.is_clearly_possible():
        smallest = math.ceil(limits.smallest())
        if not smallest <= total:
            raise ValueError(
                f"A budget of at least {smallest:,} {unit} can be met. Received: "
                f"{scheme.received()}, {total:,.0f}. Ask for a larger size, or "
                "make the model smaller first, as `tfcompress.Decomposition` does."
            )
    if limits.is_certainly_used():
        return
    largest = math.ceil(limits.largest())
    if total > (1 + _UNUSED) * largest:
        warn_caller(
            f"A budget of at most about {largest:,} {unit} is expected: all weights "
            f"then have {scheme.widths()[-1]} bits, the most there are. Received: "
            f"{scheme.received()}, {total:,.0f}. The result will be that much smaller "
            "than asked for. Ask for less, or keep layers float by "
            "overrides={NAME: tfc.KeepFloat()}."
        )


def _finest_codes(kernel):
    """Codes of a kernel with 8 bits, in a uniform grid."""
    step = uniform_step(SortedNonZeros(kernel, SAMPLES), 8)[0]
    limit = code_limit(8)
    return np.clip(np.round(kernel / step), -limit, limit).astype(np.int8)


def _vary(student: Student) -> None:
    """Makes the weights that train as hard to compress as trained ones.

    Floats have both signs and magnitudes over eight powers of two. Those that no
    training changes stay.
    """
    rng = np.random.default_rng(0)
    floats = list(student.trainable_variables)
    for layer in Graph(student).layers().values():
        if isinstance(layer, layers.BatchNormalization) and layer.trainable:
            floats += [layer.moving_mean, layer.moving_variance]
    for variable in floats:
        magnitudes = np.exp2(rng.uniform(-8, 0, variable.shape))
        is_positive = variable.name == "moving_variance"
        signs = 1.0 if is_positive else rng.choice([-1.0, 1.0], variable.shape)
        variable.assign(signs * magnitudes)
    # Biases in units of small kernels are large integers, and none equals another.
    codebooks = student.size_space.codebooks
    codebooks.set_kernels({n: x / 256 for n, x in codebooks.kernels().items()})
