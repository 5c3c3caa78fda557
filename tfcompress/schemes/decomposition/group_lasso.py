"""Group sparsity by a proximal step after every step of the optimizer."""

import functools
import threading
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.proximal import ProximalStep, set_proximal_operator
from tfcompress.types import ArrayLike, Tensor

# Least norm of a variable: small ones, such as new biases, count as if they had it.
LEAST_NORM = 0.1


@dataclass(eq=False)
class Member:
    """Slices of a variable that belong to groups.

    Attributes:
        variable: trainable variable.
        axis: int. Axis that the slices lie along.
        index: int array over that axis. Group of each slice; -1 for none.
        scale: float. Factor of the variable in the norms.
    """

    variable: Any
    axis: int
    index: np.ndarray
    scale: float = 1.0


class SliceGroups:
    """Groups of slices of variables; the slices of a group become zero together.

    Group k has the slices that `index` assigns to k, over all members. Its norm is
    sqrt(sum over members of ||slice||^2 / ||member||^2). Norms are relative to the
    members, so that variables of any scale compare.

    Attributes:
        first: int. Position of the first group in the `GroupLasso`.
        members: list of `Member`.

    Args:
        weights: float array (groups,). Factors of the strength of each group.
    """

    def __init__(self, weights: ArrayLike) -> None:
        self.first = 0
        self.weights = np.asarray(weights, np.float32)
        self.members: list[Member] = []

    def add(self, variable: Any, axis: int, index: ArrayLike) -> None:
        """Adds a member; see `Member` for the arguments."""
        self.members.append(Member(variable, axis, np.asarray(index)))

    def normalize(self) -> None:
        """Makes norms relative to the present values of the members."""
        for member in self.members:
            norm = float(np.linalg.norm(ops.convert_to_numpy(member.variable)))
            member.scale = 1.0 / max(norm, LEAST_NORM)

    def norms(self) -> Tensor:
        """Returns the norm of each group, a float32 tensor (groups,)."""
        count = len(self.weights)
        total = ops.zeros((count,))
        for member in self.members:
            value = ops.cast(ops.convert_to_tensor(member.variable), "float32")
            value = value * member.scale
            axis = member.axis % len(value.shape)
            others = [i for i in range(len(value.shape)) if i != axis]
            squares = ops.sum(ops.square(value), axis=others)
            if not np.array_equal(member.index, np.arange(count)):
                segments: np.ndarray = member.index % (count + 1)
                squares = ops.segment_sum(squares, segments, count + 1)
            total = total + squares[:count]
        return ops.sqrt(total)

    def weighted_norms(self) -> np.ndarray:
        """Returns norm / weight of each group, a float array (groups,).

        A proximal step of that size makes the group zero.

        Raises:
            ValueError: if norms are not finite.
        """
        norms = ops.convert_to_numpy(self.norms())
        if not np.isfinite(norms).all():
            raise ValueError(
                "Finite coefficients are expected. Received NaN or infinity: the "
                "training diverged. Lower the learning rate."
            )
        return norms / np.maximum(self.weights, 1e-12)

    def shrinkage_factors(self, step: Tensor) -> Tensor:
        """Returns the factors of the groups in a proximal step, float32 (groups,).

        max(0, 1 - step * weight / norm), the proximal operator of the group lasso.

        Args:
            step: float tensor (groups,), see `GroupLasso.steps`.
        """
        norms = ops.maximum(self.norms(), 1e-12)
        return ops.maximum(0.0, 1.0 - step * self.weights / norms)


class _Pass:
    """Shrinkage of all variables in one step: a group's members share its factor."""

    def __init__(self) -> None:
        self.rate: Tensor | None = None  # learning rate
        self.members: set[int] = set()  # ids of those that have shrunk
        self.factors: dict[int, Tensor] = {}  # by id of the groups


class GroupLasso(ProximalStep):
    """Proximal step of a group lasso over several `SliceGroups`.

    The norm of a group falls by strength * learning rate * weight in each step.

    Attributes:
        count: int. Number of groups.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._memberships: dict[int, list[tuple[SliceGroups, Member]]] = {}
        self._passes: dict[int, _Pass] = {}  # by thread: replicas run in one each

    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        return {"shrinkage": [(self.count,)]}

    def add(self, groups: SliceGroups) -> None:
        """Adds groups; their strengths follow those of the groups before.

        The variables of the groups have a proximal operator from now on.
        """
        groups.first = self.count
        self.count += len(groups.weights)
        for member in groups.members:
            memberships = self._memberships.setdefault(id(member.variable), [])
            memberships.append((groups, member))
            operator = functools.partial(self.proximal_operator, memberships)
            set_proximal_operator(member.variable, operator)

    def attach(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Follows an optimizer's learning rate from now on, with strengths of 0."""
        super().attach(optimizer)
        self._passes.clear()
        self.set_strengths(0.0)

    def detach(self) -> None:
        super().detach()
        self._passes.clear()

    def set_strengths(self, strengths: np.ndarray | float) -> None:
        """Sets the strengths: float array (count,), or one number for all."""
        (variable,) = self.parameters["shrinkage"]
        variable.assign(np.broadcast_to(np.float32(strengths), (self.count,)))

    def learning_rate(self) -> Tensor:
        step = self._passes.get(threading.get_ident(), _Pass())
        if step.rate is None:
            step.rate = super().learning_rate()
        return step.rate

    def steps(self, groups: SliceGroups) -> Tensor:
        """Returns strength * learning rate of the groups, a float32 tensor (groups,).

        Zero without an optimizer.
        """
        if not self.is_attached:
            return ops.zeros((len(groups.weights),))
        last = groups.first + len(groups.weights)
        (variable,) = self.parameters["shrinkage"]
        strengths = ops.convert_to_tensor(variable)[groups.first : last]
        return self.learning_rate() * strengths

    def proximal_operator(
        self, memberships: list[tuple[SliceGroups, Member]], value: Tensor
    ) -> Tensor:
        """Returns the value of a variable after a proximal step.

        All members of a group shrink by the same factor. It follows from the norm that
        the group has when the first of them shrinks, after the optimizer's update.
        Below the threshold all become exactly zero.

        Args:
            memberships: list of `(groups, member)`, of the variable.
            value: float tensor. The variable's value.
        """
        for groups, member in memberships:
            shape = [1] * len(value.shape)
            shape[member.axis] = -1
            factors = ops.take(
                self._factors(groups, member), member.index % (len(groups.weights) + 1)
            )
            value = value * ops.cast(ops.reshape(factors, shape), value.dtype)
        return value

    def _factors(self, groups, member):
        """Factors of the groups in this step, and 1 for slices in no group."""
        step = self._passes.get(threading.get_ident())
        if step is None or id(member) in step.members:  # the next step
            step = self._passes[threading.get_ident()] = _Pass()
        step.members.add(id(member))
        if id(groups) not in step.factors:
            factors = groups.shrinkage_factors(self.steps(groups))
            step.factors[id(groups)] = ops.concatenate([factors, ops.ones((1,))])
        return step.factors[id(groups)]
