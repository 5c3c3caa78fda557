"""The weights that share one size, and the projections of ADMM on it."""

import math

import numpy as np
from keras import ops

from tfcompress.core.knapsack import multiple_choice_knapsack
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Codebook
from tfcompress.quantizers.clustering import (
    SortedNonZeros,
    counts_and_distortions,
    kmeans,
    nearest,
    snapped,
    uniform_step,
)
from tfcompress.quantizers.packing import code_limit
from tfcompress.schemes.size_constrained.admm import AdmmStep
from tfcompress.schemes.size_constrained.allocation import keep_largest, largest
from tfcompress.schemes.size_constrained.rate_distortion import operating_points

# A layer of fewer weights passes nothing on.
LEAST_WEIGHTS = 10
# Bits that a weight takes at least, also where all are the same.
_LEAST_BITS = 0.1
# What a choice really takes is only known once it is made: so often it is corrected,
# to be at most this share below the budget, or this close to a multiple of it.
_ROUNDS, _BELOW, _CLOSE = 8, 0.01, 0.05


class SizeSpace:
    """A student's kernels with a codebook each.

    Attributes:
        layers: `{name: layer}` of the layers with a `Codebook`.
        budget: the `SizeBudget`, to be set before anything is chosen.
        residual: ||W - V|| / ||W|| of all layers at the last projection; None before
            and once there is no V any more.
        multiple: of what the budget has for the codes, they last took; or None.

    Args:
        student: a Functional model.
        codebook: "uniform" or "kmeans".
        bit_widths: those to choose from, ascending.
    """

    def __init__(self, student, codebook, bit_widths):
        self.layers = {
            name: layer
            for name, layer in Graph(student).layers().items()
            if isinstance(layer, QuantizedKernel)
            and isinstance(layer.kernel_quantizer, Codebook)
        }
        self.budget = self.residual = self.multiple = None
        self.codebook = codebook
        self.bit_widths = bit_widths
        self.quantizers = {n: x.kernel_quantizer for n, x in self.layers.items()}

    @property
    def bits(self):
        """`{name: bits}` of the codebooks."""
        widths = {n: ops.convert_to_numpy(q.width) for n, q in self.quantizers.items()}
        return {name: int(width) for name, width in widths.items()}

    def connect(self):
        """Ties the kernels to anchors, see `AdmmStep`."""
        self.admm_step = AdmmStep(
            [layer.latent_kernel for layer in self.layers.values()]
        )

    def anchors(self):
        """What ADMM draws the kernels to, V - U: list of arrays."""
        return [ops.convert_to_numpy(q.anchor) for q in self._all()]

    def kernels(self):
        """`{name: float32 array}` of the latent kernels."""
        return {
            n: ops.convert_to_numpy(x.latent_kernel) for n, x in self.layers.items()
        }

    def floors(self):
        """`{name: how many weights stay in any case}`."""
        return {n: min(LEAST_WEIGHTS, x.size) for n, x in self.kernels().items()}

    def is_frozen(self):
        """Whether it is decided which weights are zero, and all bits."""
        return all(float(ops.convert_to_numpy(q.frozen)) for q in self._all())

    def set_quantizing(self, on):
        """Whether the student computes with codebooks or with float kernels."""
        for quantizer in self._all():
            quantizer.quantizes.assign(float(on))

    def freeze(self):
        """Settles zeros and bits for good."""
        for quantizer in self._all():
            quantizer.frozen.assign(1.0)

    def start(self):
        """Begins with V = W and U = 0, and the zeros and bits that lose least."""
        kernels = self.kernels()
        self._choose(kernels, 1.0)
        for name, quantizer in self.quantizers.items():
            quantizer.anchor.assign(kernels[name])
            quantizer.dual.assign(np.zeros_like(kernels[name]))

    def affords_all(self, factor):
        """Whether a multiple of the budget pays for all weights, as bits are."""
        bits, kernels = self.bits, self.kernels()
        values = sum(
            x.size * self.budget.index_bits(bits[n]) for n, x in kernels.items()
        )
        return values <= factor * self.budget.allowed()

    def project(self, factor=1.0):
        """One round of ADMM: W sparse, V quantized, U after them.

        arXiv 1910.05897, Section 3: W keeps what the budget pays for at the present
        bits; bits are then chosen for W + U at the present numbers of weights.

        Args:
            factor: of the budget, at least 1, that W is to meet.
        """
        kernels = self.kernels()
        masks = self._sparse(kernels, factor)
        sums, kept = {}, {}
        for name, layer in self.layers.items():
            kernels[name] = kernels[name] * masks[name]
            layer.latent_kernel.assign(kernels[name])
            sums[name] = kernels[name] + ops.convert_to_numpy(
                self.quantizers[name].dual
            )
            kept[name] = SortedNonZeros(sums[name])
        bits = self._chosen_bits(kept, granted=self.budget.allowed())
        distance = norm = 0.0
        for name, quantizer in self.quantizers.items():
            levels, step = self._fitted(kept[name], bits[name])
            quantized = nearest(sums[name] / step, levels.astype("float32")) * step
            dual = sums[name] - quantized
            quantizer.dual.assign(dual)
            quantizer.anchor.assign(quantized - dual)
            distance += np.square(kernels[name] - quantized).sum()
            norm += np.square(kernels[name]).sum()
        self._set_codebooks(kernels, masks, bits)
        self._learn()
        self.residual = float(np.sqrt(distance / max(norm, 1e-30)))

    def tighten(self, factor=1.0, worth=0.0):
        """Takes weights and bits that are too many for a multiple of the budget.

        No weight that was held at zero comes back; a layer may get more bits for fewer
        weights.

        Args:
            factor: of the budget, at least 1.
            worth: share of its loss that a layer has to gain by other bits, in [0, 1),
                or it keeps those of now.
        """
        masks = self.masks()
        kernels = {name: x * masks[name] for name, x in self.kernels().items()}
        masks = self._choose(kernels, factor, worth)
        self.residual = None
        for name, layer in self.layers.items():
            layer.latent_kernel.assign(kernels[name] * masks[name])

    def _choose(self, kernels, factor, worth=0.0):
        """Sets the zeros and bits that lose least at a multiple of the budget.

        Args:
            kernels: `{name: array}`; what is zero stays so.
            factor, worth: see `tighten`.

        Returns:
            The masks.
        """
        floors, points = self.floors(), {}
        for name, kernel in kernels.items():
            points[name] = operating_points(
                kernel, floors[name], self.budget, self.bit_widths
            )
        costs = {name: x.costs for name, x in points.items()}
        now = self.bits
        losses = {
            name: x.losses / (1.0 - worth * (x.bits != now[name]))
            for name, x in points.items()
        }
        least = sum(x.min() for x in costs.values())
        allowed = factor * self.budget.allowed()
        for _ in range(_ROUNDS if self.budget.sparse else 1):
            chosen = multiple_choice_knapsack(
                costs, losses, max(allowed, least), off_hull=True
            )
            bits = {name: int(points[name].bits[i]) for name, i in chosen.items()}
            masks = {
                name: largest(kernels[name], points[name].kept[i])
                for name, i in chosen.items()
            }
            self._set_codebooks(kernels, masks, bits)
            received = self._learn() / factor
            if 1.0 - _BELOW <= received <= 1.0:
                break
            if factor > 1.0 and abs(received - 1.0) <= _CLOSE:
                break
            allowed *= 0.995 / max(received, 0.1)
        return masks

    def empty(self):
        """Leaves the least weights that a layer must have, with the fewest bits."""
        kernels = self.kernels()
        costs = dict.fromkeys(kernels, 1.0)
        masks = keep_largest(kernels, costs, 0.0, self.floors())
        bits = dict.fromkeys(kernels, self.bit_widths[0])
        self._set_codebooks(kernels, masks, bits)

    def shave(self, share):
        """Takes weights until a share of their nominal bits is left.

        Levels stay as they were trained. Where zeros save nothing, bits go instead.

        Args:
            share: below 1.
        """
        if not self.budget.sparse:
            kernels = self.kernels()
            kept = {name: SortedNonZeros(kernel) for name, kernel in kernels.items()}
            self._set_codebooks(kernels, self.masks(), self._chosen_bits(kept, share))
            return
        masks = {name: codes != 0 for name, (codes, _) in self.codes().items()}
        kernels = {name: x * masks[name] for name, x in self.kernels().items()}
        costs = self._costs(masks)
        allowed = share * sum(costs[n] * x.sum() for n, x in masks.items())
        floors = {n: min(x, masks[n].sum()) for n, x in self.floors().items()}
        masks = keep_largest(kernels, costs, allowed, floors)
        for name, quantizer in self.quantizers.items():
            quantizer.mask.assign(masks[name])

    def refresh(self):
        """Fits the codebooks to the weights as they are now; zeros and bits stay."""
        self._set_codebooks(self.kernels(), self.masks(), self.bits)

    def masks(self):
        """`{name: boolean array}` of the weights that are not held at zero."""
        return {n: ops.convert_to_numpy(q.mask) > 0 for n, q in self.quantizers.items()}

    def codes(self):
        """`{name: (int8 array, bits)}` of the kernels."""
        bits = self.bits
        return {
            n: (x.kernel_quantizer.encode(x.latent_kernel)[0], bits[n])
            for n, x in self.layers.items()
        }

    def _all(self):
        return self.quantizers.values()

    def _sparse(self, kernels, factor=1.0):
        """Masks of the weights that a multiple of the budget pays for, as bits are."""
        masks = self.masks()
        if not self.budget.sparse:
            return masks
        allowed = factor * self.budget.allowed()
        return keep_largest(kernels, self._costs(masks), allowed, self.floors())

    def _costs(self, masks):
        """`{name: nominal bits of a kept weight}`, as codes are."""
        nominal = self.budget.nominal(self.codes())
        return {n: max(nominal[n] / x.sum(), _LEAST_BITS) for n, x in masks.items()}

    def _chosen_bits(self, kept, share=1.0, granted=0.0):
        """The bits that distort least, for what the weights take with those of now.

        Args:
            kept: `{name: SortedNonZeros}`.
            share: of that, to be spent.
            granted: nominal bits to be spent in any case.
        """
        costs, losses, spent = {}, {}, 0.0
        for name, values in kept.items():
            size, now = self.layers[name].latent_kernel.shape, self.bits[name]
            found = counts_and_distortions(values, self.bit_widths, self.codebook)
            costs[name] = np.array(
                [
                    self.budget.rate(counts, math.prod(size), bits)
                    for (counts, _), bits in zip(found, self.bit_widths, strict=True)
                ]
            )
            losses[name] = np.array([distortion for _, distortion in found])
            spent += costs[name][self.bit_widths.index(now)]
        chosen = multiple_choice_knapsack(costs, losses, max(granted, share * spent))
        return {name: self.bit_widths[i] for name, i in chosen.items()}

    def _fitted(self, values, bits):
        """`(levels, step)` of a codebook for sorted values."""
        if self.codebook == "uniform":
            limit = code_limit(bits)
            return np.arange(-limit, limit + 1), uniform_step(values, bits)[0]
        centroids, _ = kmeans(values, bits)
        return snapped(centroids)

    def _set_codebooks(self, kernels, masks, bits):
        for name, quantizer in self.quantizers.items():
            values = SortedNonZeros(kernels[name] * masks[name])
            fitted = self._fitted(values, bits[name])
            quantizer.set_codebook(bits[name], *fitted, masks[name])

    def _learn(self):
        """Tells the budget what the codes really take.

        Returns:
            That, as a multiple of what the budget has for them.
        """
        budget = self.budget
        size = budget.learn(self.codes())
        granted = max(budget.total - budget.overhead, 1.0)
        self.multiple = (size - budget.overhead) / granted
        return self.multiple
