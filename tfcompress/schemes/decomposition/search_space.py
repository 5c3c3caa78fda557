"""Search space of decomposition: removable channels and ranks, and their cost."""

from collections.abc import Collection, Mapping

import keras
import numpy as np
from keras import ops

from tfcompress.cost.input_shape import InputShape, sized_graph
from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.channels import Channels, GroupSet
from tfcompress.graph.graph import Graph
from tfcompress.layers import FactorizedKernel
from tfcompress.progress_bar import progress_bar
from tfcompress.schemes.decomposition.activation_statistics import ActivationStatistics
from tfcompress.schemes.decomposition.group_lasso import GroupLasso, SliceGroups
from tfcompress.schemes.decomposition.principal_axes import (
    output_scales,
    rotate_to_principal_axes,
)
from tfcompress.schemes.decomposition.width_model import WidthModel


class RankSpace:
    """Channels and ranks that a student can lose, as groups of a group lasso.

    Attributes:
        layers: dict of str to `FactorizedKernel`. The factorized layers by name.
        channels: `Channels` of the student.
        removable: bool array (groups,). Whether each channel dependency group can be
            removed.
        width_model: `WidthModel` of the student.
        lasso: `GroupLasso` of all groups, once connected.
        rank_groups: dict of str to `SliceGroups`. Groups of the ranks by layer.
        channel_groups: list of `(GroupSet, SliceGroups)`. Removable channels.

    Args:
        student: Functional model with `FactorizedKernel` layers.
        unit: see `WidthModel`.
        margin: see `WidthModel`.
        input_shape: see `Decomposition`.
    """

    def __init__(
        self,
        student: keras.Model,
        unit: str,
        margin: float,
        input_shape: InputShape | None = None,
    ) -> None:
        graph = Graph(student)
        self._named = named = graph.layers()
        self.layers = {
            n: x for n, x in named.items() if isinstance(x, FactorizedKernel)
        }
        self.channels = Channels(graph)
        self.removable = removable_groups(self.channels, self.layers)
        self.width_model = WidthModel(
            student, self.channels, unit, self.layers, margin, input_shape
        )
        # Channels are followed as `finalize` does it, without the reference size.
        self._sized_graph = sized_graph(student, input_shape) if input_shape else graph
        self._norms = {n: foldable(graph, layer) for n, layer in self.layers.items()}

    def input_shape(self, name: str) -> tuple[int | None, ...]:
        """Returns the shape of a layer's first input, batch axis included."""
        return tuple(self._sized_graph.calls_of(self.layers[name])[0].inputs[0].shape)

    def connect(self) -> None:
        """Puts a group lasso on coefficients and on variables of the same channels.

        A second call replaces the groups of the first.
        """
        self.lasso = GroupLasso()
        self.rank_groups = {name: self._rank_groups(name) for name in self.layers}
        savings = self.width_model.savings(len(self.removable))
        self.channel_groups = [
            (group_set, self._channel_groups(group_set, savings))
            for group_set in self.channels.group_sets
            if self.removable[group_set.groups].all()
        ]
        for slices in self._all_groups():
            self.lasso.add(slices)

    def _rank_groups(self, name):
        coefficients = self.layers[name].coefficients
        rank = coefficients.shape[0]
        keep_all = np.ones(len(self.removable), bool)
        cost = self.width_model.cost_per_rank(name, keep_all)
        slices = SliceGroups(np.full(rank, np.sqrt(cost)))
        slices.add(coefficients, 0, np.arange(rank))
        return slices

    def _channel_groups(self, group_set, savings):
        slices = SliceGroups(np.sqrt(savings[group_set.groups]))
        position = np.full(len(self.removable), -1)
        position[group_set.groups] = np.arange(len(group_set.groups))
        for name in group_set.producers:
            layer, index = self.layers[name], position[self.channels.written[name]]
            slices.add(layer.coefficients, 1, index)
            if layer.use_bias:
                slices.add(layer.bias, 0, index)
        for name in group_set.carriers:
            layer, index = self._named[name], position[self.channels.read[name]]
            if isinstance(layer, keras.layers.BatchNormalization):
                for variable in (layer.gamma, layer.beta):
                    # A frozen one would keep the norm of its group above zero.
                    if variable is not None and layer.trainable:
                        slices.add(variable, 0, index)
        return slices

    def normalize(self) -> None:
        """Makes the norms of groups relative to the present values of variables."""
        for slices in self._all_groups():
            slices.normalize()

    def scales(self) -> np.ndarray:
        """Returns the factors that `normalize` found, a float array (members,)."""
        return np.array([member.scale for member in self._members()])

    def set_scales(self, scales: np.ndarray) -> None:
        """Sets the factors that `normalize` found at another time."""
        for member, scale in zip(self._members(), scales, strict=True):
            member.scale = float(scale)

    def mean_norm(self) -> float:
        """Returns norm / weight, averaged over all groups.

        Raises:
            ValueError: if coefficients are not finite.
        """
        norms = [slices.weighted_norms() for slices in self._all_groups()]
        return float(np.mean(np.concatenate(norms)))

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a layer's masked basis and coefficients, float64 arrays."""
        basis, coefficients = self.layers[name].masked_factors()
        return (
            np.asarray(ops.convert_to_numpy(basis), np.float64),
            np.asarray(ops.convert_to_numpy(coefficients), np.float64),
        )

    def output_scales(
        self, name: str, coefficients: np.ndarray, statistics: ActivationStatistics
    ) -> np.ndarray:
        """Returns the scales of a layer's outputs, see `principal_axes`."""
        norm = self._norms[name]
        if norm is not None:
            gamma = 1.0 if norm.gamma is None else ops.convert_to_numpy(norm.gamma)
            norm = gamma, norm.epsilon
        return output_scales(coefficients, statistics.hidden_covariance, norm)

    def is_new(self) -> bool:
        """Whether factors are to be rotated before they train."""
        svd = [x for x in self.layers.values() if x.kernel_rank is None]
        return any(layer.is_product() for layer in svd)

    def rotate(self, statistics: Mapping[str, ActivationStatistics]) -> None:
        """Rotates factors to the principal axes of their layers' outputs.

        Only those that start from a singular value decomposition; products stay.

        Args:
            statistics: dict of str to `ActivationStatistics`. Present statistics by
                layer.
        """
        svd = {n: x for n, x in self.layers.items() if x.kernel_rank is None}
        with progress_bar("Principal axes of outputs", len(svd)) as bar:
            for name, layer in bar.over(svd.items()):
                basis, coefficients = self.factors(name)
                rows = basis.reshape(-1, len(coefficients))
                scales = self.output_scales(name, coefficients, statistics[name])
                covariance = statistics[name].hidden_covariance
                layer.set_factors(
                    *rotate_to_principal_axes(rows, coefficients, covariance, scales)
                )

    def shrink(
        self,
        keep_groups: np.ndarray,
        keep_ranks: Mapping[str, np.ndarray],
        strength: float,
    ) -> None:
        """Makes all groups shrink but those that are kept.

        Args:
            keep_groups: bool array (groups,). Keep mask of the channel dependency
                groups.
            keep_ranks: dict of str to bool array (rank,). Keep masks by layer.
            strength: float. Strength of the group lasso.
        """
        removed = [~keep_ranks[name] for name in self.rank_groups]
        removed += [~keep_groups[s.groups] for s, _ in self.channel_groups]
        self.lasso.set_strengths(strength * np.concatenate(removed))

    def present_cost(self) -> float:
        """Returns the cost without the channels and ranks that are masked or zero."""
        keep_groups: np.ndarray = np.ones(len(self.removable), bool)
        for group_set, slices in self.channel_groups:
            keep_groups[group_set.groups] = ops.convert_to_numpy(slices.norms()) > 0
        ranks = {}
        for name, layer in self.layers.items():
            norms = ops.convert_to_numpy(self.rank_groups[name].norms())
            kept = ops.convert_to_numpy(layer.rank_mask) * norms > 0
            ranks[name] = int(np.count_nonzero(kept))
            groups = self.channels.read.get(name)
            if groups is not None:
                is_open = ops.convert_to_numpy(layer.input_mask) > 0
                keep_groups[groups] &= is_open
        return self.width_model.cost(keep_groups, ranks)

    def is_frozen(self) -> bool:
        """Whether the channels and ranks that stay are final."""
        frozen = [layer.frozen for layer in self.layers.values()]
        return all(float(ops.convert_to_numpy(flag)) for flag in frozen)

    def freeze(
        self, keep_groups: np.ndarray, keep_ranks: Mapping[str, np.ndarray]
    ) -> None:
        """Masks all channels and ranks but those that are kept, for good.

        Args:
            keep_groups: see `shrink`.
            keep_ranks: see `shrink`.
        """
        self.mask(keep_groups, keep_ranks)
        for layer in self.layers.values():
            layer.frozen.assign(1.0)

    def mask(
        self, keep_groups: np.ndarray, keep_ranks: Mapping[str, np.ndarray]
    ) -> None:
        """Does the same as `freeze`, without a change of other arithmetic."""
        for name, layer in self.layers.items():
            layer.rank_mask.assign(keep_ranks[name].astype("float32"))
            groups = self.channels.read.get(name)
            if groups is not None:
                layer.input_mask.assign(keep_groups[groups].astype("float32"))

    def with_hidden_ranges(self) -> dict[str, FactorizedKernel]:
        """Returns the layers with a range of their own between basis and coefficients.

        By name, once they are masked.
        """
        return {n: x for n, x in self.layers.items() if x.int8 and x.is_decomposed()}

    def _all_groups(self):
        channels = (slices for _, slices in self.channel_groups)
        return [*self.rank_groups.values(), *channels]

    def _members(self):
        return [x for slices in self._all_groups() for x in slices.members]


def removable_groups(channels: Channels, factorized: Collection[str]) -> np.ndarray:
    """Returns whether a decomposition may remove each channel dependency group.

    Only factorized layers may write and sum over its channels.

    Args:
        channels: `Channels` of the model.
        factorized: names of the factorized layers.

    Returns:
        Bool array (groups,).
    """
    removable: np.ndarray = np.zeros(len(channels.frozen), bool)
    for group_set in channels.group_sets:
        removable[group_set.groups] = why_kept(group_set, factorized) == ""
    return removable


def why_kept(group_set: GroupSet, factorized: Collection[str]) -> str:
    """Returns the reason why a set of channels stays, or ""."""
    if group_set.frozen:
        return group_set.frozen
    names = (*group_set.producers, *group_set.consumers)
    others = [name for name in names if name not in factorized]
    if others:
        return f"'{others[0]}' is left alone"
    if not group_set.producers or not group_set.consumers:
        return "no layer sums over them"
    return ""
