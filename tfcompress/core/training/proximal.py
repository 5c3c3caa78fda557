"""Proximal steps: an operator applied to variables after each optimizer update."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import rate_of_step
from tfcompress.types import Tensor


class ProximalStep:
    """The parameters of a proximal operator, as variables of the optimizer.

    An update can read no other variable that changes on every backend. Without an
    optimizer the operator does nothing.

    Attributes:
        parameters: dict of str to list of variables, while an optimizer is attached.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, list] = {}
        self._optimizer: keras.optimizers.Optimizer | None = None

    def shapes(self) -> Mapping[str, list[tuple[int, ...]]]:
        """`{name: shapes of the variables}` of the parameters."""
        raise NotImplementedError

    @property
    def is_attached(self) -> bool:
        """Whether an optimizer is attached."""
        return self._optimizer is not None

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Gives an optimizer the parameters, all zero; another one loses them."""
        if self._optimizer is not optimizer:
            self.detach()
            self._optimizer = optimizer
            self.parameters = {
                name: [optimizer.add_variable(shape, name=name) for shape in shapes]
                for name, shapes in self.shapes().items()
            }

    def detach(self) -> None:
        """Takes the parameters from the optimizer, which could not be loaded with
        them."""
        if self._optimizer is not None:
            for variables in self.parameters.values():
                for variable in variables:
                    keras_private.untrack_variable(self._optimizer, variable)
            self._optimizer, self.parameters = None, {}

    def learning_rate(self) -> Tensor:
        """The learning rate of the update, a scalar; see `rate_of_step`."""
        return rate_of_step(self._optimizer)


class ProximalConstraint(keras.constraints.Constraint):
    """Applies a proximal operator to a variable, after the variable's own constraint.

    Args:
        operator: function from the variable's value to its new value.
        own: the constraint that the variable had, or None.
    """

    def __init__(
        self, operator: Callable[[Tensor], Tensor], own: Any | None = None
    ) -> None:
        self.operator = operator
        self.own = own

    def __call__(self, value: Tensor) -> Tensor:
        if self.own is not None:
            value = self.own(value)
        return self.operator(value)


def set_proximal_operator(variable: Any, operator: Callable[[Tensor], Tensor]) -> None:
    """Applies an operator to a variable after each update, in place of an earlier one.

    Args:
        variable: a trainable variable; it keeps its own constraint.
        operator: see `ProximalConstraint`.
    """
    own = variable.constraint
    if isinstance(own, ProximalConstraint):
        own = own.own
    variable.constraint = ProximalConstraint(operator, own)
