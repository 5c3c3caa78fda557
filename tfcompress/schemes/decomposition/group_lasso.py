"""Group sparsity: a proximal step behind every step of the optimizer."""

import functools

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.proximal import ProximalStep, set_proximal_operator
from tfcompress.types import Tensor

# Of a variable: smaller ones, such as new biases, count as if they had this norm.
LEAST_NORM = 0.1


class GroupLasso(ProximalStep):
    """Group sparsity: each group shrinks by its strength times the learning rate.

    Attributes:
        count: int. Number of groups.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._memberships: dict[int, list] = {}

    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        return {"shrinkage": [(self.count,)]}

    def add(self, groups: "Groups") -> None:
        """Takes `Groups` in; their strengths follow those of the groups before.

        The variables of the groups shrink after each update from now on.
        """
        groups.first = self.count
        self.count += len(groups.weights)
        for variable, axis, index, _ in groups.members:
            memberships = self._memberships.setdefault(id(variable), [])
            memberships.append((groups, axis, index))
            operator = functools.partial(self.shrink, memberships)
            set_proximal_operator(variable, operator)

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Follows an optimizer's learning rate from now on, with strengths of 0."""
        super().attach(optimizer)
        self.assign(0.0)

    def assign(self, strengths: np.ndarray | float) -> None:
        """Sets the strengths: float array (count,), or one number for all."""
        (variable,) = self.parameters["shrinkage"]
        variable.assign(np.broadcast_to(np.float32(strengths), (self.count,)))

    def thresholds(self, groups: "Groups") -> Tensor:
        """The thresholds of the proximal operator now, a float32 tensor (groups,)."""
        if not self.is_attached:
            return ops.zeros((len(groups.weights),))
        last = groups.first + len(groups.weights)
        (variable,) = self.parameters["shrinkage"]
        strengths = ops.convert_to_tensor(variable)[groups.first : last]
        return self.learning_rate() * strengths

    def shrink(self, memberships: list, value: Tensor) -> Tensor:
        """The proximal operator on one variable.

        The members of a group shrink one after the other by nearly the same factor;
        below the threshold all become exactly zero.

        Args:
            memberships: list of `(Groups, axis, index)`, see `Groups.add`.
            value: of the variable, a float tensor.
        """
        for groups, axis, index in memberships:
            shape = [1] * len(value.shape)
            shape[axis] = -1
            factors = groups.factors(self.thresholds(groups))
            # The last one is that of slices in no group.
            factors = ops.concatenate([factors, ops.ones((1,))])
            factors = ops.take(factors, index % (len(groups.weights) + 1))
            value = value * ops.cast(ops.reshape(factors, shape), value.dtype)
        return value


class Groups:
    """Groups of slices of variables; the slices of one shrink and die together.

    Group k has the slices that `index` assigns to k, over all members. Its norm is
    sqrt(sum over members of ||slice||^2 / ||member||^2): its shares of the members'
    energies, so that variables of any scale compare.

    Args:
        weights: float array (groups,): how much faster a group shrinks.

    Attributes:
        first: see `GroupLasso.add`.
    """

    def __init__(self, weights):
        self.first = None
        self.weights = np.asarray(weights, np.float32)
        self.members = []

    def add(self, variable, axis, index):
        """Adds a member.

        Args:
            variable: a trainable variable.
            axis: the one that groups lie along.
            index: int array over that axis, group of each slice; -1 for none.
        """
        self.members.append((variable, axis, np.asarray(index), 1.0))

    def measure(self):
        """Makes norms relative to the variables as they are now."""
        self.members = [
            (variable, axis, index, 1.0 / max(_frobenius(variable), LEAST_NORM))
            for variable, axis, index, _ in self.members
        ]

    def norms(self):
        """Float32 tensor (groups,)."""
        count = len(self.weights)
        total = ops.zeros((count,))
        for variable, axis, index, scale in self.members:
            value = ops.cast(ops.convert_to_tensor(variable), "float32") * scale
            others = [
                i for i in range(len(value.shape)) if i != axis % len(value.shape)
            ]
            squares = ops.sum(ops.square(value), axis=others)
            if not np.array_equal(index, np.arange(count)):
                squares = ops.segment_sum(squares, index % (count + 1), count + 1)
            total = total + squares[:count]
        return ops.sqrt(total)

    def factors(self, step):
        """What the proximal step multiplies each group by, float32 (groups,).

        max(0, 1 - step * weight / norm), the proximal operator of the group lasso.

        Args:
            step: float tensor (groups,), see `GroupLasso.thresholds`.
        """
        norms = ops.maximum(self.norms(), 1e-12)
        return ops.maximum(0.0, 1.0 - step * self.weights / norms)


def _frobenius(variable):
    return float(np.linalg.norm(ops.convert_to_numpy(variable)))
