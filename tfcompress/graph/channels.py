"""Which channels are tied together, and which of them can be removed."""

import dataclasses

import numpy as np

from tfcompress.graph.rules.table import rule_of
from tfcompress.graph.trace import Trace


@dataclasses.dataclass(frozen=True)
class GroupSet:
    """Classes of channels that the same layers make, carry and read.

    Attributes:
        groups: int array, ascending.
        producers: names of the layers that make the channels.
        carriers: names of the layers that have weights for each of them:
            BatchNormalization, PReLU, depthwise convolutions.
        consumers: names of the layers that sum over them.
        frozen: why none of them can be removed, or "".
    """

    groups: np.ndarray
    producers: tuple
    carriers: tuple
    consumers: tuple
    frozen: str


class Channels:
    """The channels of a graph, in classes that can only be removed together.

    Channels that are added, multiplied or compared element by element are tied, and
    so are those at the same place in all groups of a grouped convolution and in
    all calls of a shared layer. What is not known to treat each channel on its own
    freezes what it reads and makes.

    Attributes:
        written: `{producer's name: int array}`, the class of each output channel.
        read: `{name: int array}`, the class at each index of the channel axis that
            a producer or carrier reads.
        frozen: list with, for every class, why it cannot be removed, or "".
        group_sets: list of `GroupSet`, of all groups of layers.
        resized: `{id(operation): tfcompress.graph.trace.Resized}` with classes in
            place of ids, of what changes with the number of channels.
        tensors: list of `(name of what makes it, int array)`, the classes of every
            tensor's channels.
        merged: `{class: which operation tied its channels}`.
        unknown: descriptions of the operations that no rule covers.

    Args:
        graph: a `tfcompress.graph.graph.Graph`.
    """

    def __init__(self, graph):
        trace = Trace(graph, rule_of)
        groups = trace.union.classes()
        count = groups.max(initial=-1) + 1
        self.resized = {
            key: _in_groups(resized, groups) for key, resized in trace.resized.items()
        }
        self.written = {r.name: r.written for r in self._of_role("producer")}
        self.read = {r.name: r.read for r in self._of_role("producer", "carrier")}
        reasons = _first_reasons(trace.frozen, groups)
        self.frozen = [reasons.get(c, "") for c in range(count)]
        self.merged = _first_reasons(trace.merged, groups)
        self.tensors = [(name, groups[space.ids]) for name, space in trace.spaces]
        self.unknown = trace.unknown
        self.group_sets = self._make_group_sets()

    def removable(self):
        """Boolean array: the classes that a layer makes and nothing freezes."""
        made = np.zeros(len(self.frozen), bool)
        for written in self.written.values():
            made[written] = True
        return made & np.array([not reason for reason in self.frozen], bool)

    def details(self):
        """Text: every group with its layers, or why it stays, and what is unknown."""
        lines = []
        for group_set in self.group_sets:
            state = f"frozen: {group_set.frozen}" if group_set.frozen else "removable"
            lines.append(f"{len(group_set.groups)} channels, {state}")
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
        members = {}
        for kind, role, side in (
            (0, "producer", "written"),
            (1, "carrier", "read"),
            (2, "producer", "read"),
        ):
            for resized in self._of_role(role):
                for c in np.unique(getattr(resized, side)):
                    members.setdefault(c, ([], [], []))[kind].append(resized.name)
        sets = {}
        for c, names in sorted(members.items()):
            key = (*map(tuple, names), self.frozen[c])
            sets.setdefault(key, []).append(c)
        return [GroupSet(np.array(ids), *key) for key, ids in sets.items()]


def _in_groups(resized, groups):
    """A `Resized` with the classes of its ids."""
    return dataclasses.replace(
        resized,
        read=groups[resized.read],
        written=groups[resized.written],
        weights={
            name: {axis: groups[ids] for axis, ids in axes.items()}
            for name, axes in resized.weights.items()
        },
        changes=lambda count: resized.changes(lambda ids: count(groups[ids])),
    )


def _first_reasons(found, groups):
    reasons = {}
    for ids, reason in found:
        for c in np.unique(groups[ids]).tolist():
            reasons.setdefault(c, reason)
    return reasons
