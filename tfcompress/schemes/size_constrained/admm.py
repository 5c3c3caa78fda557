"""ADMM of kernels, auxiliary variables and dual variables (arXiv 1910.05897)."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.proximal import ProximalStep, set_proximal_operator
from tfcompress.quantizers.clustering import SAMPLES, SortedNonZeros, nearest
from tfcompress.schemes.size_constrained.allocation import Allocation
from tfcompress.schemes.size_constrained.codebooks import Codebooks
from tfcompress.types import Tensor

# The smallest squared norm of all kernels, to divide by.
_TINY = 1e-30


class AdmmStep(ProximalStep):
    """Proximal step that draws kernels W to targets V - U: W <- (W + t A) / (1 + t).

    V is the auxiliary variable, U the scaled dual variable, A = V - U, and t = learning
    rate * rho. This is the proximal operator of rho / 2 ||W - A||^2 (arXiv 1910.05897,
    Section 3), exact for SGD. Adam scales the gradients of the loss and not this term,
    so that it needs another `rho`.

    Args:
        kernels: sequence of trainable variables. A kernel's own constraint is applied
            first.
    """

    def __init__(self, kernels: Sequence[Any]) -> None:
        super().__init__()
        self.kernels = list(kernels)
        for index, kernel in enumerate(self.kernels):
            set_proximal_operator(kernel, functools.partial(self._draw, index))

    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        return {"rho": [()], "anchor": [tuple(x.shape) for x in self.kernels]}

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Follows an optimizer's learning rate from now on, with rho = 0."""
        super().attach(optimizer)
        self.assign(0.0)

    def assign(self, rho: float, targets: Sequence[np.ndarray] = ()) -> None:
        """Sets rho, and the targets if there are any.

        Args:
            rho: float >= 0. Penalty parameter of ADMM, in 1 / learning rate.
            targets: float arrays of the kernels' shapes, or an empty sequence.
        """
        self.parameters["rho"][0].assign(rho)
        variables = self.parameters["anchor"]
        for variable, target in zip(variables, targets, strict=bool(targets)):
            variable.assign(target)

    def _draw(self, index: int, value: Tensor) -> Tensor:
        if not self.is_attached:
            return value
        rho, target = self.parameters["rho"][0], self.parameters["anchor"][index]
        t = ops.cast(self.learning_rate() * rho, value.dtype)
        return (value + t * ops.cast(target, value.dtype)) / (1.0 + t)


class Admm:
    """ADMM iteration: sparse kernels W, quantized V, dual variables U.

    Attributes:
        step: `AdmmStep` of the latent kernels.
        residual: float or None. ||W - V|| / ||W|| of all layers after the last
            projection; None before the first one and once V is no longer used.

    Args:
        codebooks: `Codebooks` of the student.
    """

    def __init__(self, codebooks: Codebooks) -> None:
        self.codebooks = codebooks
        self.step = AdmmStep([x.latent_kernel for x in codebooks.layers.values()])
        self.residual: float | None = None

    def targets(self) -> list[np.ndarray]:
        """Returns V - U of each kernel, float32 arrays in the order of the layers."""
        return [
            ops.convert_to_numpy(q.anchor) for q in self.codebooks.quantizers.values()
        ]

    def start(self) -> None:
        """Sets V = W and U = 0."""
        kernels = self.codebooks.kernels()
        for name, quantizer in self.codebooks.quantizers.items():
            quantizer.anchor.assign(kernels[name])
            quantizer.dual.assign(np.zeros_like(kernels[name]))

    def project(self, allocation: Allocation, factor: float = 1.0) -> None:
        """One iteration: projects W, quantizes W + U to V, and updates U.

        arXiv 1910.05897, Section 3. W keeps the weights that the budget pays for at the
        present bits. V takes the bits that distort W + U least at the present numbers
        of weights.

        Args:
            allocation: `Allocation` of the budget.
            factor: float >= 1. Multiple of the budget that W is to meet.
        """
        codebooks = self.codebooks
        kernels = codebooks.kernels()
        masks = allocation.sparse_masks(kernels, factor)
        kernels = {name: kernel * masks[name] for name, kernel in kernels.items()}
        codebooks.set_kernels(kernels)
        sums = {
            name: kernels[name] + ops.convert_to_numpy(quantizer.dual)
            for name, quantizer in codebooks.quantizers.items()
        }
        values = {name: SortedNonZeros(x, SAMPLES) for name, x in sums.items()}
        bits = allocation.choose_bits(values, granted=allocation.budget.allowed())
        distance = norm = 0.0
        for name, quantizer in codebooks.quantizers.items():
            levels, step = codebooks.fitted(values[name], bits[name])
            quantized = nearest(sums[name] / step, levels.astype("float32")) * step
            dual = sums[name] - quantized
            quantizer.dual.assign(dual)
            quantizer.anchor.assign(quantized - dual)
            distance += np.square(kernels[name] - quantized).sum()
            norm += np.square(kernels[name]).sum()
        codebooks.fit(kernels, masks, bits)
        allocation.measure_codes()
        self.residual = float(np.sqrt(distance / max(norm, _TINY)))

    def stop(self) -> None:
        """Sets rho = 0: kernels are no longer drawn to V - U."""
        self.step.assign(0.0)
        self.residual = None
