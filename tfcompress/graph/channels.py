"""Channel dependency groups: which channels can only be removed together.

DepGraph (https://arxiv.org/abs/2301.12900) groups whole layers. Here each set of tied
channels is a group.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tfcompress.graph.graph import Graph
from tfcompress.graph.rules.table import rule_of
from tfcompress.graph.trace import Resized, Trace


@dataclasses.dataclass(frozen=True)
class GroupSet:
    """Dependency groups that the same layers make, carry and read.

    Attributes:
        groups: int array (n,). The groups, ascending.
        producers: tuple of str. Names of the layers that make their channels.
        carriers: tuple of str. Names of the layers that have weights for each channel:
            BatchNormalization, PReLU, depthwise convolutions.
        consumers: tuple of str. Names of the layers that sum over their channels.
        frozen: str. Reason that none of the groups can be removed, or "".
    """

    groups: np.ndarray
    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str


class Channels:
    """Channels of a graph in dependency groups, which are removed as a whole.

    Channels that are added, multiplied or compared element by element are in one
    group. So are channels at the same place in all groups of a grouped convolution,
    and in all calls of a shared layer. An operation that is not known to treat each
    channel on its own freezes the channels that it reads and makes.

    Attributes:
        written: `{producer's name: int array}`. Group of each output channel.
        read: `{name: int array}`. Group at each index of the channel axis that a
            producer or carrier reads.
        frozen: list of str. For each group, the reason that it cannot be removed,
            or "".
        group_sets: list of `GroupSet`. All groups that a layer makes, carries or reads.
        resized: `{id(operation): tfcompress.graph.trace.Resized}`, with groups in
            place of channel ids. Operations that depend on their channels.
        tensors: list of `(name, int array)`. Groups of each tensor's channels, with
            the name of the call that makes it.
        merged: `{group: str}`. Operation that tied the group's channels.
        unknown: list of str. Descriptions of the operations that no rule covers.

    Args:
        graph: `tfcompress.graph.Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        trace = Trace(graph, rule_of)
        group_of = trace.union.classes()
        count = group_of.max(initial=-1) + 1
        self.resized: dict[int, Resized] = {
            key: _in_groups(resized, group_of) for key, resized in trace.resized.items()
        }
        self.written: dict[str, np.ndarray] = {
            r.name: r.written for r in self._of_role("producer")
        }
        self.read: dict[str, np.ndarray] = {
            r.name: r.read for r in self._of_role("producer", "carrier")
        }
        reasons = _first_reasons(trace.frozen, group_of)
        self.frozen: list[str] = [reasons.get(group, "") for group in range(count)]
        self.merged: dict[int, str] = _first_reasons(trace.merged, group_of)
        self.tensors: list[tuple[str, np.ndarray]] = [
            (name, group_of[space.ids]) for name, space in trace.spaces
        ]
        self.unknown: list[str] = trace.unknown
        self.group_sets: list[GroupSet] = self._make_group_sets()

    def removable(self) -> np.ndarray:
        """Boolean array over the groups: made by a layer, and not frozen."""
        made: np.ndarray = np.zeros(len(self.frozen), bool)
        for written in self.written.values():
            made[written] = True
        return made & np.array([not reason for reason in self.frozen], bool)

    def details(self) -> str:
        """Text that lists all group sets with their layers and reasons.

        Unknown operations come last.
        """
        lines = []
        for group_set in self.group_sets:
            state = f"frozen: {group_set.frozen}" if group_set.frozen else "removable"
            count = len(group_set.groups)
            noun = "dependency group" if count == 1 else "dependency groups"
            lines.append(f"{count} {noun}, {state}")
            for verb, names in (
                ("made", group_set.producers),
                ("carried", group_set.carriers),
                ("read", group_set.consumers),
            ):
                if names:
                    lines.append(f"    {verb} by {', '.join(names)}")
        if self.unknown:
            lines.append(f"Unknown operations: {', '.join(self.unknown)}")
        return "\n".join(lines)

    def _of_role(self, *roles):
        return [r for r in self.resized.values() if r.role in roles]

    def _make_group_sets(self):
        # Groups of one label have the same reason, and the same layers so far.
        reasons: dict[str, int] = {}
        labels: np.ndarray = np.array(
            [reasons.setdefault(reason, len(reasons)) for reason in self.frozen], int
        )
        known: list[tuple] = [((), (), (), reason) for reason in reasons]
        used: np.ndarray = np.zeros(len(labels), bool)
        # Producers, carriers and consumers, the order of `GroupSet`.
        sides = ("producer", "written"), ("carrier", "read"), ("producer", "read")
        for place, (role, side) in enumerate(sides):
            for resized in self._of_role(role):
                groups = np.unique(getattr(resized, side))
                old, index = np.unique(labels[groups], return_inverse=True)
                labels[groups] = len(known) + index
                used[groups] = True
                for layers in map(list, map(known.__getitem__, old)):
                    layers[place] += (resized.name,)
                    known.append(tuple(layers))
        groups = np.flatnonzero(used)
        _, first = np.unique(labels[groups], return_index=True)
        return [
            GroupSet(groups[labels[groups] == label], *known[label])
            for label in labels[groups][np.sort(first)]
        ]


def _in_groups(resized: Resized, group_of: np.ndarray) -> Resized:
    """A `Resized` with groups in place of channel ids."""
    return dataclasses.replace(
        resized,
        read=group_of[resized.read],
        written=group_of[resized.written],
        weights={
            name: {axis: group_of[ids] for axis, ids in axes.items()}
            for name, axes in resized.weights.items()
        },
        changes=lambda count: resized.changes(lambda ids: count(group_of[ids])),
    )


def _first_reasons(
    found: Iterable[tuple[np.ndarray, str]], group_of: np.ndarray
) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for ids, reason in found:
        for group in np.unique(group_of[ids]).tolist():
            reasons.setdefault(group, reason)
    return reasons
