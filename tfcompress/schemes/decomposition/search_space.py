"""What a decomposing student can lose: channels, ranks, and what they cost."""

import keras
import numpy as np
from keras import ops

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.layers import FactorizedKernel
from tfcompress.schemes.decomposition.group_lasso import GroupLasso, Groups
from tfcompress.schemes.decomposition.importance import channel_scores, rank_scores
from tfcompress.schemes.decomposition.principal_axes import multipliers, turned
from tfcompress.schemes.decomposition.selection import Scores
from tfcompress.schemes.decomposition.width_model import WidthModel

# A group whose norm has come down to this share of the mean is as good as gone.
GONE = 1e-3


class RankSpace:
    """The groups of a student's coefficients and the cost that they decide on.

    Attributes:
        layers: `{name: layer}` of the factorized layers.
        channels: the student's `Channels`.
        removable: boolean array over the classes of channels.
        width_model: the `WidthModel`.
        lasso: the `GroupLasso` that shrinks the groups.

    Args:
        student: a Functional model with `FactorizedKernel` layers.
        unit, margin: see `WidthModel`.
    """

    def __init__(self, student, unit, margin):
        self._graph = graph = Graph(student)
        named = graph.layers()
        self.layers = {
            n: x for n, x in named.items() if isinstance(x, FactorizedKernel)
        }
        self.channels = Channels(graph)
        self.removable = removable_groups(self.channels, self.layers)
        self.width_model = WidthModel(student, self.channels, unit, self.layers, margin)
        self._norms = {n: foldable(graph, layer) for n, layer in self.layers.items()}
        self._named = named

    def input_shape(self, name):
        """The shape of what a layer is called on first, batch axis included."""
        return tuple(self._graph.calls_of(self.layers[name])[0].inputs[0].shape)

    def connect(self):
        """Makes coefficients, and what shares their channels, shrink under pressure."""
        self.lasso = GroupLasso()
        all_alive = np.ones(len(self.removable), bool)
        self._ranks = {}
        for name, layer in self.layers.items():
            rank = layer.coefficients.shape[0]
            per_rank = self.width_model.per_rank(name, all_alive)
            groups = Groups(np.full(rank, np.sqrt(per_rank)))
            groups.add(layer.coefficients, 0, np.arange(rank))
            self._ranks[name] = groups
        self._classes = []
        per_class = self.width_model.per_class(len(self.removable))
        for group in self.channels.group_sets:
            if self.removable[group.groups].all():
                groups = Groups(np.sqrt(per_class[group.groups]))
                self._join_all(groups, group)
                self._classes.append((group, groups))
        for groups in self._all_groups():
            self.lasso.add(groups)

    def _join_all(self, groups, group):
        position = np.full(len(self.removable), -1)
        position[group.groups] = np.arange(len(group.groups))
        for name in group.producers:
            layer, index = self.layers[name], position[self.channels.written[name]]
            groups.add(layer.coefficients, 1, index)
            if layer.use_bias:
                groups.add(layer.bias, 0, index)
        for name in group.carriers:
            layer, index = self._named[name], position[self.channels.read[name]]
            if isinstance(layer, keras.layers.BatchNormalization):
                for variable in (layer.gamma, layer.beta):
                    if variable is not None:
                        groups.add(variable, 0, index)

    def measure(self):
        """Makes norms relative to the variables as they are now."""
        for groups in self._all_groups():
            groups.measure()

    def scales(self):
        """What `measure` found, a float array."""
        return np.array(
            [x[-1] for groups in self._all_groups() for x in groups.members]
        )

    def set_scales(self, scales):
        """Makes norms relative to what `measure` found at another time."""
        scales = iter(scales)
        for groups in self._all_groups():
            groups.members = [(*x[:-1], float(next(scales))) for x in groups.members]

    def mean_size(self):
        """Norm over weight, averaged over all groups."""
        return float(np.mean(np.concatenate([_sizes(g) for g in self._all_groups()])))

    def turn(self, moments):
        """Turns factors to the principal axes of what their layers compute.

        Those that start from a singular value decomposition; their products stay.

        Args:
            moments: `{layer name: Moments}` of now.
        """
        for name, layer in self.layers.items():
            if layer.kernel_rank is None:
                basis, coefficients = _factors(layer)
                rows = basis.reshape(-1, len(coefficients))
                scales = self._multipliers(name, coefficients, moments[name])
                hidden = moments[name].hidden
                layer.set_factors(*turned(rows, coefficients, hidden, scales))

    def scores(self, moments):
        """`Scores` of now, see `importance`; 0 for what is gone.

        Args:
            moments: `{layer name: Moments}` of now.

        Raises:
            ValueError: if coefficients are not finite.
        """
        gone = GONE * self.mean_size()
        alive = np.ones(len(self.removable), bool)
        ranks, read = {}, {}
        for name, layer in self.layers.items():
            basis, coefficients = _factors(layer)
            scales = self._multipliers(name, coefficients, moments[name])
            energies = np.square(coefficients * scales).sum(axis=1)
            energies *= np.diag(moments[name].hidden)
            energies[_sizes(self._ranks[name]) <= gone] = 0.0
            costs = self.width_model.rank_costs(name, alive)
            ranks[name] = rank_scores(energies, *costs)
            kernel = basis @ coefficients * scales
            kernel = kernel.reshape(-1, *kernel.shape[-2:])
            read[name] = np.square(kernel).sum(axis=(0, 2)) * moments[name].inputs
        classes = np.full(len(self.removable), np.inf)
        per_class = self.width_model.per_class(len(self.removable))
        for group, groups in self._classes:
            energies, others = self._energies(group, read)
            energies[:, _sizes(groups) <= gone] = 0.0
            costs = per_class[group.groups]
            classes[group.groups] = channel_scores(energies, others, costs)
        return Scores(classes, [group.groups for group, _ in self._classes], ranks)

    def _energies(self, group, read):
        """What a group's channels add to each layer that reads them, and others."""
        energies, others = [], []
        for name in group.consumers:
            classes, energy = self.channels.read[name], read[name]
            sums = np.bincount(classes, energy, len(self.removable))[group.groups]
            energies.append(sums)
            others.append(energy.sum() - sums.sum())
        return np.array(energies), np.maximum(others, 0.0)

    def _multipliers(self, name, coefficients, moments):
        norm = self._norms[name]
        if norm is not None:
            gamma = 1.0 if norm.gamma is None else ops.convert_to_numpy(norm.gamma)
            norm = gamma, norm.epsilon
        return multipliers(coefficients, moments.hidden, norm)

    def press(self, cut, strength):
        """Makes the groups shrink that a `Cut` takes, and leaves the others alone."""
        taken = [~cut.ranks[name] for name in self._ranks]
        taken += [~cut.alive[group.groups] for group, _ in self._classes]
        self.lasso.assign(strength * np.concatenate(taken))

    def is_frozen(self):
        """Whether it is decided what goes."""
        return all(float(ops.convert_to_numpy(x.frozen)) for x in self.layers.values())

    def apply(self, cut):
        """Masks what a `Cut` takes, for good."""
        for name, layer in self.layers.items():
            layer.rank_mask.assign(cut.ranks[name].astype("float32"))
            classes = self.channels.read.get(name)
            if classes is not None:
                layer.input_mask.assign(cut.alive[classes].astype("float32"))
            layer.frozen.assign(1.0)

    def _all_groups(self):
        return [*self._ranks.values(), *(groups for _, groups in self._classes)]


def removable_groups(channels, factorized):
    """Which classes of channels a decomposition may remove.

    Those that only factorized layers write and sum over.

    Args:
        channels: a `Channels`.
        factorized: names of the factorized layers.

    Returns:
        Boolean array over the classes.
    """
    removable = np.zeros(len(channels.frozen), bool)
    for group in channels.group_sets:
        removable[group.groups] = why_kept(group, factorized) == ""
    return removable


def why_kept(group, factorized):
    """Why a group of channels stays, or ""."""
    if group.frozen:
        return group.frozen
    others = [n for n in (*group.producers, *group.consumers) if n not in factorized]
    if others:
        return f"'{others[0]}' is left alone"
    if not group.producers or not group.consumers:
        return "no layer sums over them"
    return ""


def equal_scores(width_model, channels):
    """`Scores` in which everything that may go is worth the same."""
    removable = removable_groups(channels, width_model.factorized)
    ranks = {
        name: np.zeros(min(width_model.terms[name].matrix))
        for name in width_model.factorized
    }
    groups = [g.groups for g in channels.group_sets if removable[g.groups].all()]
    return Scores(np.where(removable, 0.0, np.inf), groups, ranks)


def _factors(layer):
    """Basis and coefficients without what is masked, float64 arrays."""
    return (
        np.asarray(ops.convert_to_numpy(factor), np.float64)
        for factor in layer.masked_factors()
    )


def _sizes(groups):
    """Norm over weight of each group, float (groups,)."""
    norms = ops.convert_to_numpy(groups.norms())
    if not np.isfinite(norms).all():
        raise ValueError(
            "Finite coefficients are expected. Received NaN or infinity: the training "
            "diverged. Lower the learning rate."
        )
    return norms / np.maximum(groups.weights, 1e-12)
