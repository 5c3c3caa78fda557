"""Filters of a single layer that a gate before the layer's readers can close."""

import dataclasses

import numpy as np

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.layers.kernel import channel_axis
from tfcompress.layers.registry import forms_of


@dataclasses.dataclass(frozen=True)
class LayerFilters:
    """Output channels of one layer.

    Attributes:
        count: int. Number of channels.
        consumers: tuple of str. Names of the layers that sum over the channels, in
            running order.
        why_kept: str. Reason that gates before the consumers cannot close them, or "".
    """

    count: int
    consumers: tuple[str, ...]
    why_kept: str


class Filters:
    """Filters of each layer of a graph, for a search that judges every layer alone.

    A gate can close filters under two conditions: no channel of another layer depends
    on them, and each reader reads all of them, with no others, on the last axis, in one
    call. The MACs are then products of shares of filters: those that a layer makes and
    those that it reads.

    Attributes:
        by_layer: `{producer's name: LayerFilters}`, in running order.
        source: `{reader's name: str}`, in running order. Name of the layer that makes
            all channels that the reader reads. Readers of several layers' channels, or
            of no layer's, are left out.

    Args:
        graph: `tfcompress.graph.Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self._channels = graph.derived(Channels)
        self._layers = graph.layers()
        self._calls = {
            name: graph.calls_of(layer) for name, layer in self._layers.items()
        }
        self._group_set_of = {
            group: group_set
            for group_set in self._channels.group_sets
            for group in group_set.groups
        }
        self.source: dict[str, str] = {}
        for name, read in self._channels.read.items():
            producers = {self._group_set_of[group].producers for group in read}
            if len(producers) == 1 and len(*producers) == 1:
                ((self.source[name],),) = producers
        self.by_layer: dict[str, LayerFilters] = {
            name: self._filters(name, written)
            for name, written in self._channels.written.items()
        }

    def _filters(self, name, written):
        group_sets = [self._group_set_of[group] for group in written]

        def names(role):
            found = {name for sets in group_sets for name in getattr(sets, role)}
            return tuple(name for name in self._layers if name in found)

        consumers = names("consumers")
        why_kept = (
            self._why_unfit(name, *names("carriers"), *consumers)
            or self._why_dependent(written)
            or self._why_misread(written, consumers)
        )
        return LayerFilters(len(written), consumers, why_kept)

    def _why_unfit(self, *names):
        for name in names:
            layer, calls = self._layers[name], self._calls[name]
            if len(calls) > 1:
                return f"'{name}' is called {len(calls)} times"
            if getattr(layer, "groups", 1) > 1:
                return f"'{name}' has groups"
            if (forms := forms_of(layer)) is not None and not forms.is_linear:
                return f"'{name}' looks rows up"
            last = len(calls[0].inputs[0].shape) - 1
            if channel_axis(layer) not in (-1, last):
                return f"'{name}' is channels_first"
        return ""

    def _why_dependent(self, written):
        for group in written:
            group_set = self._group_set_of[group]
            if group_set.frozen or len(group_set.producers) > 1:
                return group_set.frozen or self._channels.merged[group]
        return ""

    def _why_misread(self, written, consumers):
        for name in consumers:
            read = self._channels.read[name]
            repeats = np.tile(written, max(1, len(read) // len(written)))
            if not np.array_equal(read, repeats):
                return f"'{name}' reads others too, or not each of them in turn"
        return ""
