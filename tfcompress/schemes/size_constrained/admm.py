"""Kernels on elastic ropes: the proximal step of ADMM behind every update."""

import keras
from keras import ops

from tfcompress.core.training.learning_rate import rate_of_step


class Tether:
    """Pulls kernels towards anchors: W <- (W + t A) / (1 + t), t = learning rate * rho.

    That is the proximal operator of rho / 2 ||W - A||^2 (arXiv 1910.05897, Section 3),
    exact for SGD. An optimizer that scales gradients, such as Adam, keeps its own
    measure of the loss against this plain one, so that it wants another `rho`.

    Strength and anchors are variables of the optimizer, because an optimizer's step can
    read no other variable that changes on every backend.

    Args:
        kernels: list of trainable variables. Each keeps its own constraint in front.
    """

    def __init__(self, kernels):
        self.kernels = kernels
        self._optimizer = None
        for index, kernel in enumerate(kernels):
            kernel.constraint = _Pull(self, index, before=kernel.constraint)

    def attach(self, optimizer):
        """Follows an optimizer's learning rate from now on, with strength 0."""
        if self._optimizer is not optimizer:
            self.detach()
            self._optimizer = optimizer
            self._rho = optimizer.add_variable((), name="rho")
            self._anchors = [
                optimizer.add_variable(kernel.shape, name="anchor")
                for kernel in self.kernels
            ]
        self.assign(0.0)

    def detach(self):
        """Takes the variables from the optimizer, which could not be loaded with it."""
        if self._optimizer is not None:
            for variable in (self._rho, *self._anchors):
                self._optimizer._untrack_variable(variable)
            self._optimizer = None

    def assign(self, rho, anchors=()):
        """Sets the strength, and the anchors if there are any to set."""
        self._rho.assign(rho)
        for variable, anchor in zip(self._anchors, anchors, strict=bool(anchors)):
            variable.assign(anchor)

    def pull(self, value, index):
        """A kernel after the proximal step."""
        if self._optimizer is None:
            return value
        t = ops.cast(rate_of_step(self._optimizer) * self._rho, value.dtype)
        return (value + t * ops.cast(self._anchors[index], value.dtype)) / (1.0 + t)


class _Pull(keras.constraints.Constraint):
    def __init__(self, tether, index, before):
        self.tether = tether
        self.index = index
        self.before = before

    def __call__(self, value):
        if self.before is not None:
            value = self.before(value)
        return self.tether.pull(value, self.index)
