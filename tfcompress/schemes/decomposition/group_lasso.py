"""Group sparsity: a proximal step behind every step of the optimizer."""

import keras
import numpy as np
from keras import ops

from tfcompress.core.training.learning_rate import rate_of_step

# Of a variable: smaller ones, such as new biases, count as if they had this norm.
LEAST_NORM = 0.1


class Pressure:
    """How far each group shrinks in one step: its strength times the learning rate.

    The strengths are a variable of the optimizer, because an optimizer's step can read
    no other variable that changes on every backend.

    Attributes:
        count: number of groups under this pressure.
    """

    def __init__(self):
        self.count = 0
        self._optimizer = None
        self._strengths = None

    def add(self, groups):
        """Takes `Groups` in; their strengths follow those of the ones before."""
        groups.first = self.count
        self.count += len(groups.weights)

    def attach(self, optimizer):
        """Follows an optimizer's learning rate from now on, with strengths of 0."""
        if self._optimizer is not optimizer:
            self.detach()
            self._optimizer = optimizer
            self._strengths = optimizer.add_variable((self.count,), name="shrinkage")
        self.assign(0.0)

    def detach(self):
        """Takes the variable from the optimizer, which could not be loaded with it."""
        if self._optimizer is not None:
            self.assign(0.0)
            self._optimizer._untrack_variable(self._strengths)
            self._optimizer = self._strengths = None

    def assign(self, strengths):
        """Sets the strengths: float array (count,), or one number for all."""
        self._strengths.assign(np.broadcast_to(np.float32(strengths), (self.count,)))

    def step(self, groups):
        """The thresholds of the proximal step now, a float32 tensor (groups,)."""
        if self._optimizer is None:
            return ops.zeros((len(groups.weights),))
        last = groups.first + len(groups.weights)
        strengths = ops.convert_to_tensor(self._strengths)[groups.first : last]
        return rate_of_step(self._optimizer) * strengths


class Groups:
    """Groups of slices of variables; the slices of one shrink and die together.

    Group k has the slices that `index` assigns to k, over all members. Its norm is
    sqrt(sum over members of ||slice||^2 / ||member||^2): its shares of the members'
    energies, so that variables of any scale compare.

    Args:
        weights: float array (groups,): how much faster a group shrinks.

    Attributes:
        first: see `Pressure.add`.
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
            step: float tensor (groups,), see `Pressure.step`.
        """
        norms = ops.maximum(self.norms(), 1e-12)
        return ops.maximum(0.0, 1.0 - step * self.weights / norms)


class Shrink(keras.constraints.Constraint):
    """The proximal step of one variable, in all groups that it is a member of.

    As a constraint it runs behind every step of the optimizer. The members of a
    group shrink one after the other by nearly the same factor; below the threshold
    all become exactly zero.

    Args:
        pressure: a `Pressure`.
        before: the variable's own constraint, or None.
    """

    def __init__(self, pressure, before=None):
        self.pressure = pressure
        self.before = before
        self.roles = []

    def add(self, groups, axis, index):
        self.roles.append((groups, axis, np.asarray(index)))

    def __call__(self, value):
        if self.before is not None:
            value = self.before(value)
        for groups, axis, index in self.roles:
            shape = [1] * len(value.shape)
            shape[axis] = -1
            factors = groups.factors(self.pressure.step(groups))
            # The last one is that of slices in no group.
            factors = ops.concatenate([factors, ops.ones((1,))])
            factors = ops.take(factors, index % (len(groups.weights) + 1))
            value = value * ops.cast(ops.reshape(factors, shape), value.dtype)
        return value


def _frobenius(variable):
    return float(np.linalg.norm(ops.convert_to_numpy(variable)))
