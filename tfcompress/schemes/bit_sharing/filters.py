"""Filters of one layer alone: what a gate in front of its readers can close."""

import dataclasses

import numpy as np

from tfcompress.graph.channels import Channels
from tfcompress.layers.kernel import channel_axis


@dataclasses.dataclass(frozen=True)
class LayerFilters:
    """The output channels of one layer.

    Attributes:
        count: how many there are.
        consumers: names of the layers that sum over them, in running order.
        tied: why a gate in front of each consumer cannot close them, or "".
    """

    count: int
    consumers: tuple
    tied: str


class Filters:
    """The view of `Channels` of a search that judges each layer's filters alone.

    A gate can close filters that no other layer's channels are tied to and that all
    readers read completely, with none of another layer, on the last axis, in one
    call. The MACs that are left are then a product of shares of filters: those that
    a layer makes and those that it reads.

    Attributes:
        of: `{producer's name: LayerFilters}` in running order.
        source: `{reader's name: name of the layer that makes all that it reads}` in
            running order, without readers of several layers' channels or of none's.

    Args:
        graph: a `tfcompress.graph.graph.Graph`.
    """

    def __init__(self, graph):
        self._channels = Channels(graph)
        self._layers = graph.layers()
        self._times = {
            name: len(graph.calls_of(layer)) for name, layer in self._layers.items()
        }
        self._group_of = {
            c: group for group in self._channels.group_sets for c in group.groups
        }
        self.source = {}
        for name, read in self._channels.read.items():
            producers = {self._group_of[c].producers for c in read}
            if len(producers) == 1 and len(*producers) == 1:
                ((self.source[name],),) = producers
        self.of = {
            name: self._filters(name, written)
            for name, written in self._channels.written.items()
        }

    def _filters(self, name, written):
        groups = [self._group_of[c] for c in written]

        def names(attribute):
            found = {name for group in groups for name in getattr(group, attribute)}
            return tuple(name for name in self._layers if name in found)

        consumers = names("consumers")
        tied = (
            self._why_unfit(name, *names("carriers"), *consumers)
            or self._why_stuck(written)
            or self._why_misread(written, consumers)
        )
        return LayerFilters(len(written), consumers, tied)

    def _why_unfit(self, *names):
        for name in names:
            layer, times = self._layers[name], self._times[name]
            if times > 1:
                return f"'{name}' is called {times} times"
            if getattr(layer, "groups", 1) > 1:
                return f"'{name}' has groups"
            if channel_axis(layer) != -1:
                return f"'{name}' is channels_first"
        return ""

    def _why_stuck(self, written):
        for c in written:
            group = self._group_of[c]
            if group.frozen or len(group.producers) > 1:
                return group.frozen or self._channels.merged[c]
        return ""

    def _why_misread(self, written, consumers):
        for name in consumers:
            read = self._channels.read[name]
            repeats = np.tile(written, max(1, len(read) // len(written)))
            if not np.array_equal(read, repeats):
                return f"'{name}' reads others too, or not each of them in turn"
        return ""
