"""Codebooks of a student's kernels: masks, codes and bits, read and set together."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers import Codebook
from tfcompress.quantizers.clustering import (
    SAMPLES,
    SortedNonZeros,
    kmeans,
    snapped,
    uniform_step,
)
from tfcompress.quantizers.packing import code_limit

# A layer keeps this many weights, to pass a signal on.
MIN_WEIGHTS = 10
# Value of `Codebook.frozen` where the frozen zeros and bits exceed the budget.
_OVER_BUDGET = 2.0


class Codebooks:
    """Kernels of a student that are quantized by a `Codebook` each.

    Attributes:
        layers: dict of str to layer. Layers with a `Codebook`, by name.
        quantizers: dict of str to `Codebook`. Kernel quantizers of the layers.
        kind: str. "uniform" or "kmeans".
        bit_widths: sequence of int. Bits of a code to choose from, ascending.

    Args:
        student: Functional model.
        kind, bit_widths: see the attributes.
    """

    def __init__(
        self, student: keras.Model, kind: str, bit_widths: Sequence[int]
    ) -> None:
        self.layers = {
            name: layer
            for name, layer in Graph(student).layers().items()
            if isinstance(layer, QuantizedKernel)
            and isinstance(layer.kernel_quantizer, Codebook)
        }
        self.quantizers = {n: x.kernel_quantizer for n, x in self.layers.items()}
        self.kind = kind
        self.bit_widths = bit_widths

    @property
    def bits(self) -> dict[str, int]:
        """Bits of a code by layer name."""
        widths = {n: ops.convert_to_numpy(q.width) for n, q in self.quantizers.items()}
        return {name: int(width) for name, width in widths.items()}

    def kernels(self) -> dict[str, np.ndarray]:
        """Returns the latent kernels by layer name, float32."""
        return {
            n: ops.convert_to_numpy(x.latent_kernel) for n, x in self.layers.items()
        }

    def masks(self) -> dict[str, np.ndarray]:
        """Returns the keep masks by layer name, bool; false holds a weight at zero."""
        return {n: ops.convert_to_numpy(q.mask) > 0 for n, q in self.quantizers.items()}

    def codes(self) -> dict[str, tuple[np.ndarray, int]]:
        """Returns `(codes, bits)` by layer name; codes are int8 of the kernel's
        shape."""
        bits = self.bits
        return {
            n: (x.kernel_quantizer.encode(x.latent_kernel)[0], bits[n])
            for n, x in self.layers.items()
        }

    def min_counts(self) -> dict[str, int]:
        """Returns the least number of weights that each layer keeps."""
        sizes = {n: math.prod(x.latent_kernel.shape) for n, x in self.layers.items()}
        return {name: min(MIN_WEIGHTS, size) for name, size in sizes.items()}

    def set_kernels(self, kernels: Mapping[str, np.ndarray]) -> None:
        """Sets the latent kernels, float arrays by layer name."""
        for name, layer in self.layers.items():
            layer.latent_kernel.assign(kernels[name])

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets the keep masks, bool arrays by layer name; codebooks stay."""
        for name, quantizer in self.quantizers.items():
            quantizer.mask.assign(masks[name])

    def fitted(
        self, values: SortedNonZeros, bits: int
    ) -> tuple[np.ndarray, np.floating]:
        """Returns `(levels, step)` of the codebook that fits values best.

        Args:
            values: weights of one kernel.
            bits: int. Bits of a code.
        """
        if self.kind == "uniform":
            limit = code_limit(bits)
            return np.arange(-limit, limit + 1), uniform_step(values, bits)[0]
        centroids, _ = kmeans(values, bits)
        return snapped(centroids)

    def fit(
        self,
        kernels: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        bits: Mapping[str, int],
    ) -> None:
        """Sets keep masks and bits, and fits codebooks to the weights that are kept.

        Of a large kernel a sample is fitted to.

        Args:
            kernels: float arrays by layer name; the latent kernels stay.
            masks: bool arrays by layer name.
            bits: bits of a code by layer name.
        """
        with progress_bar("Codebooks", len(self.quantizers)) as bar:
            for name, quantizer in bar.over(self.quantizers.items()):
                values = SortedNonZeros(kernels[name] * masks[name], SAMPLES)
                fitted = self.fitted(values, bits[name])
                quantizer.set_codebook(bits[name], *fitted, masks[name])

    def refit(self) -> None:
        """Fits the codebooks to the present weights; masks and bits stay."""
        self.fit(self.kernels(), self.masks(), self.bits)

    def set_quantizing(self, on: bool) -> None:
        """Sets whether the student computes with codebooks or with float kernels."""
        for quantizer in self.quantizers.values():
            quantizer.quantizes.assign(float(on))

    def is_frozen(self) -> bool:
        """Whether all bits are frozen, and zeros but for those that pruning adds."""
        return all(self._flags() > 0)

    def is_over_budget(self) -> bool:
        """Whether zeros and bits are frozen, and do not meet the budget."""
        return all(self._flags() == _OVER_BUDGET)

    def freeze(self, meets_budget: bool = True) -> None:
        """Freezes zeros and bits.

        Args:
            meets_budget: bool. Whether the finished artefact is within the budget.
        """
        self._set_flags(1.0 if meets_budget else _OVER_BUDGET)

    def is_preliminary(self) -> bool:
        """Whether codebooks are those of `set_preliminary`, before any search."""
        return all(self._flags() < 0)

    def set_preliminary(self) -> None:
        """Sets a grid of 8 bits for each new kernel, up to its largest magnitude."""
        for name, kernel in self.kernels().items():
            largest = max(kernel.max(), -kernel.min())
            self.quantizers[name].step.assign(largest / code_limit(8) or 1.0)
        self._set_flags(-1.0)

    def begin(self) -> None:
        """Ends the preliminary state: zeros and bits are those of a search."""
        self._set_flags(0.0)

    def _flags(self):
        flags = [ops.convert_to_numpy(q.frozen) for q in self.quantizers.values()]
        return np.array(flags)

    def _set_flags(self, value):
        for quantizer in self.quantizers.values():
            quantizer.frozen.assign(value)
