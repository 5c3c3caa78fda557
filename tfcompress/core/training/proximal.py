"""Proximal steps: operators that are applied to variables after each update."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.compat import keras_private
from tfcompress.core.training.learning_rate import rate_of_step
from tfcompress.types import Tensor


class ProximalStep:
    """Parameters of a proximal operator, as variables of the optimizer.

    On some backends an update sees no changes of other variables. Files leave the
    parameters out, so that a new optimizer can load what this one saves.

    Attributes:
        parameters: dict of str to list of variables. Empty if no optimizer is attached;
            the operator is then the identity.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, list] = {}
        self._optimizer: keras.optimizers.Optimizer | None = None
        self._saved: list[keras.optimizers.Optimizer] = []  # it, and its wrapper

    def shapes(self) -> Mapping[str, list[tuple[int, ...]]]:
        """Returns `{name: shapes of the variables}` of the parameters."""
        raise NotImplementedError

    @property
    def is_attached(self) -> bool:
        """Whether an optimizer is attached."""
        return self._optimizer is not None

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Adds the parameters, all zero, to an optimizer.

        Does nothing if they are there; an optimizer attached before loses them.

        Args:
            optimizer: optimizer of a compiled model. Of a wrapper that scales losses,
                the inner optimizer gets the parameters.
        """
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if self._optimizer is not inner:
            self.detach()
            self._optimizer = inner
            self.parameters = {
                name: [inner.add_variable(shape, name=name) for shape in shapes]
                for name, shapes in self.shapes().items()
            }
            self._saved = [inner] if inner is optimizer else [inner, optimizer]
            for saved in self._saved:
                saved.save_own_variables = self._without_own(saved.save_own_variables)
                saved.load_own_variables = self._without_own(saved.load_own_variables)

    def _without_own(self, function):
        """A function of a store that sees an optimizer without the parameters."""

        def call(store):
            with keras_private.without_variables(self._optimizer, self._variables()):
                function(store)

        return call

    def _variables(self):
        return [x for variables in self.parameters.values() for x in variables]

    def detach(self) -> None:
        """Removes the parameters from the optimizer."""
        if self._optimizer is not None:
            for saved in self._saved:
                del saved.save_own_variables, saved.load_own_variables
            for variable in self._variables():
                keras_private.untrack_variable(self._optimizer, variable)
            self._optimizer, self.parameters = None, {}

    def learning_rate(self) -> Tensor:
        """Returns the learning rate of the update, a scalar; see `rate_of_step`."""
        return rate_of_step(self._optimizer)


class ProximalConstraint(keras.constraints.Constraint):
    """Constraint that applies a proximal operator after a variable's own constraint.

    Args:
        operator: function from the variable's value to its new value.
        own: the variable's own constraint, or None.
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
    """Sets the operator that a variable passes after each update.

    Args:
        variable: trainable variable. It keeps its own constraint and loses an operator
            that was set before.
        operator: function from the variable's value to its new value.
    """
    own = variable.constraint
    if isinstance(own, ProximalConstraint):
        own = own.own
    variable.constraint = ProximalConstraint(operator, own)
