"""The weights that share one size, and the projections of ADMM on it."""

import numpy as np
from keras import ops

from tfcompress.layers import QuantizedKernel
from tfcompress.quantizers import Codebook
from tfcompress.quantizers.clustering import (
    SortedNonZeros,
    distortions,
    kmeans,
    nearest,
    snapped,
    uniform_step,
)
from tfcompress.quantizers.packing import code_limit
from tfcompress.schemes.allocation import allocate_bits, keep_largest
from tfcompress.schemes.tether import Tether
from tfcompress.surgery.graph import Graph

# A layer of fewer weights passes nothing on.
LEAST_WEIGHTS = 10


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
        """Ties the kernels to anchors, see `Tether`."""
        self.tether = Tether([layer._kernel for layer in self.layers.values()])

    def anchors(self):
        """What ADMM draws the kernels to, V - U: list of arrays."""
        return [ops.convert_to_numpy(q.anchor) for q in self._all()]

    def kernels(self):
        """`{name: float32 array}` of the latent kernels."""
        return {n: ops.convert_to_numpy(x._kernel) for n, x in self.layers.items()}

    def floors(self):
        """`{name: how many weights stay in any case}`."""
        return {n: min(LEAST_WEIGHTS, x.size) for n, x in self.kernels().items()}

    def is_fixed(self):
        """Whether it is decided which weights are zero, and all bits."""
        return all(float(ops.convert_to_numpy(q.fixed)) for q in self._all())

    def set_quantizing(self, on):
        """Whether the student computes with codebooks or with float kernels."""
        for quantizer in self._all():
            quantizer.quantizes.assign(float(on))

    def fix(self):
        """Settles zeros and bits for good."""
        for quantizer in self._all():
            quantizer.fixed.assign(1.0)

    def start(self):
        """Begins with V = W and U = 0, and the bits that distort least."""
        kernels = self.kernels()
        if self.budget.sparse:
            bits, masks = self._best_even_start(kernels)
        else:
            masks = {name: np.ones(x.shape, bool) for name, x in kernels.items()}
            kept = {name: SortedNonZeros(kernel) for name, kernel in kernels.items()}
            bits = self._chosen_bits(kept, masks, self.budget.allowed())
        self._set_codebooks(kernels, masks, bits)
        self.settle()
        for name, quantizer in self.quantizers.items():
            quantizer.anchor.assign(kernels[name])
            quantizer.dual.assign(np.zeros_like(kernels[name]))

    def _best_even_start(self, kernels):
        """`(bits, masks)` with the bits, the same for all, that distort least."""
        count = sum(x.size for x in kernels.values())
        found = []
        for width in self.bit_widths:
            cost = self.budget.cost(width, _even_density(self.budget, width, count))
            if found and cost * sum(self.floors().values()) > self.budget.allowed():
                continue
            costs = dict.fromkeys(kernels, cost)
            masks = keep_largest(kernels, costs, self.budget.allowed(), self.floors())
            lost = sum(np.square(w[~masks[n]]).sum() for n, w in kernels.items())
            for name, kernel in kernels.items():
                kept = SortedNonZeros(kernel * masks[name])
                lost += distortions(kept, (width,), self.codebook)[0]
            found.append((lost, width, masks))
        _, width, masks = min(found, key=lambda item: item[0])
        return dict.fromkeys(kernels, width), masks

    def project(self, factor=1.0):
        """One round of ADMM: W sparse, V quantized, U after them.

        arXiv 1910.05897, Section 3: W keeps what the budget pays for at the present
        bits; bits are then chosen for W + U at the present numbers of weights.

        Args:
            factor: of the budget, at least 1, that W is to meet.
        """
        kernels, bits = self.kernels(), self.bits
        masks = self._sparse(kernels, bits, factor)
        sums, kept = {}, {}
        for name, layer in self.layers.items():
            kernels[name] = kernels[name] * masks[name]
            layer._kernel.assign(kernels[name])
            sums[name] = kernels[name] + ops.convert_to_numpy(
                self.quantizers[name].dual
            )
            kept[name] = SortedNonZeros(sums[name])
        # What the kept weights cost with the bits they were kept at is there to spend.
        allowed = max(self.budget.allowed(), self._nominal(masks, bits))
        bits = self._chosen_bits(kept, masks, allowed)
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
        self._learn(masks)
        self.residual = float(np.sqrt(distance / max(norm, 1e-30)))

    def tighten(self, factor):
        """Takes the least weights that are too many for a multiple of the budget.

        Args:
            factor: of the budget, at least 1.
        """
        masks = self.masks()
        kernels = {name: x * masks[name] for name, x in self.kernels().items()}
        masks = self._choose(kernels, self.bits, factor, rounds=3)
        self.residual = None
        for name, layer in self.layers.items():
            layer._kernel.assign(kernels[name] * masks[name])

    def settle(self, rounds=8):
        """Chooses zeros that come as close to the budget as its model allows.

        Args:
            rounds: at most.
        """
        self._choose(self.kernels(), self.bits, 1.0, rounds)

    def _choose(self, kernels, bits, factor, rounds):
        """Sets the masks that come close to a multiple of the budget, and returns them.

        What codes really take depends on the masks, so that it takes some rounds.
        """
        for _ in range(rounds if self.budget.sparse else 1):
            masks = self._sparse(kernels, bits, factor)
            self._set_codebooks(kernels, masks, bits)
            if 0.99 * factor <= self._learn(masks) <= factor:
                break
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

        Args:
            share: below 1.
        """
        bits, masks = self.bits, self.masks()
        if self.budget.sparse:
            masks = {name: codes != 0 for name, (codes, _) in self.codes().items()}
        allowed = share * self._nominal(masks, bits)
        kernels = {name: x * masks[name] for name, x in self.kernels().items()}
        if self.budget.sparse:
            costs = {
                n: self.budget.cost(bits[n], d) for n, d in _densities(masks).items()
            }
            floors = {n: min(x, masks[n].sum()) for n, x in self.floors().items()}
            masks = keep_largest(kernels, costs, allowed, floors)
        else:
            kept = {name: SortedNonZeros(kernel) for name, kernel in kernels.items()}
            bits = self._chosen_bits(kept, masks, allowed)
        self._set_codebooks(kernels, masks, bits)

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
            n: (x.kernel_quantizer.encode(x._kernel)[0], bits[n])
            for n, x in self.layers.items()
        }

    def _all(self):
        return self.quantizers.values()

    def _sparse(self, kernels, bits, factor=1.0):
        """Masks of the weights that a multiple of the budget pays for."""
        if not self.budget.sparse:
            return {name: np.ones(x.shape, bool) for name, x in kernels.items()}
        densities = _densities(self.masks())
        costs = {n: self.budget.cost(bits[n], densities[n]) for n in kernels}
        allowed = factor * self.budget.allowed()
        return keep_largest(kernels, costs, allowed, self.floors())

    def _chosen_bits(self, kept, masks, allowed):
        costs, losses = {}, {}
        for name, density in _densities(masks).items():
            count = masks[name].sum()
            costs[name] = np.array(
                [count * self.budget.cost(width, density) for width in self.bit_widths]
            )
            losses[name] = distortions(kept[name], self.bit_widths, self.codebook)
        chosen = allocate_bits(costs, losses, allowed)
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

    def _learn(self, masks):
        """Tells the budget what the kept weights really take.

        Returns:
            That, as a multiple of what the budget has for them.
        """
        budget, size = self.budget, self.budget.size_of(self.codes())
        budget.learn(self._nominal(masks, self.bits), size)
        self.multiple = (size - budget.overhead) / (budget.total - budget.overhead)
        return self.multiple

    def _nominal(self, masks, bits):
        """Bits that the kept weights nominally cost."""
        return sum(
            masks[name].sum() * self.budget.cost(bits[name], density)
            for name, density in _densities(masks).items()
        )


def _densities(masks):
    return {name: float(mask.mean()) for name, mask in masks.items()}


def _even_density(budget, bits, count):
    """The share of `count` weights that the budget pays for, if all layers keep it."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = middle * count * budget.cost(bits, middle) <= budget.allowed()
        low, high = (middle, high) if enough else (low, middle)
    return low
