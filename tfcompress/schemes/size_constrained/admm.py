"""The proximal step of ADMM: kernels are drawn towards auxiliary variables."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.proximal import ProximalStep, set_proximal_operator
from tfcompress.types import Tensor


class AdmmStep(ProximalStep):
    """Draws kernels W towards anchors A = V - U: W <- (W + t A) / (1 + t).

    V is the auxiliary variable, U the dual variable, and t = learning rate * rho. This
    is the proximal operator of rho / 2 ||W - A||^2 (arXiv 1910.05897, Section 3), exact
    for SGD. Adam scales the gradients of the loss and not this term, so that it wants
    another `rho`.

    Args:
        kernels: list of trainable variables. A kernel's own constraint comes first.
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

    def assign(self, rho: float, anchors: Sequence[np.ndarray] = ()) -> None:
        """Sets rho, and the anchors if there are any.

        Args:
            rho: float >= 0.
            anchors: float arrays of the kernels' shapes, or an empty list.
        """
        self.parameters["rho"][0].assign(rho)
        variables = self.parameters["anchor"]
        for variable, anchor in zip(variables, anchors, strict=bool(anchors)):
            variable.assign(anchor)

    def _draw(self, index: int, value: Tensor) -> Tensor:
        if not self.is_attached:
            return value
        rho, anchor = self.parameters["rho"][0], self.parameters["anchor"][index]
        t = ops.cast(self.learning_rate() * rho, value.dtype)
        return (value + t * ops.cast(anchor, value.dtype)) / (1.0 + t)
