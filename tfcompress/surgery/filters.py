"""Filters of one layer alone: what a gate in front of its readers can close."""

import dataclasses

import numpy as np

from tfcompress.surgery.channels import Channels
from tfcompress.surgery.weight_rules import channel_axis


@dataclasses.dataclass(frozen=True)
class ChannelSpace:
    """The output channels of one layer.

    Attributes:
        producer: name of the layer that makes them.
        channels: how many there are.
        consumers: names of the layers that sum over them.
        carriers: names of the layers in between that have weights per channel:
            BatchNormalization, PReLU and depthwise convolutions.
        tied: why this layer's filters cannot go on their own, or "".
    """

    producer: str
    channels: int
    consumers: tuple
    carriers: tuple
    tied: str


@dataclasses.dataclass(frozen=True)
class InputSpace:
    """The channels that a layer reads.

    Attributes:
        producer: name of the only layer that makes them.
        channel_of: int array, for every index of the channel axis of the reader's
            input the producer's channel there. It counts up from 0, but behind
            Flatten and depthwise convolutions with a multiplier.
    """

    producer: str
    channel_of: np.ndarray


class Filters:
    """The view of `Channels` of a search that judges each layer's filters alone.

    A filter is a channel that nothing else is united with, that is read on the last
    axis, with all others of its layer and none of another, and by layers that are
    called once: then one gate in front of each reader closes it, and what it costs
    is a product of its producer's and its readers' shares.

    Attributes:
        spaces: `{producer's name: ChannelSpace}` in running order.
        inputs: `{reader's name: InputSpace}` in running order. It lacks the layers
            that read anything else than the filters of one layer.

    Args:
        graph: a `tfcompress.surgery.graph.Graph`.
    """

    def __init__(self, graph):
        self._channels = Channels(graph)
        self._layers = graph.layers()
        self._times = {
            name: len(graph.calls_of(layer)) for name, layer in self._layers.items()
        }
        self._producers_of = {}
        for group in self._channels.groups:
            for c in group.classes:
                self._producers_of[c] = group
        self.inputs = {}
        for name, read in self._channels.read.items():
            space = self._input_space(read)
            if space is not None and self._times[name] == 1:
                self.inputs[name] = space
        self.spaces = {
            name: self._space(name, written)
            for name, written in self._channels.written.items()
        }

    def _input_space(self, read):
        producers = {self._producers_of[c].producers for c in np.unique(read)}
        if len(producers) != 1 or len(next(iter(producers))) != 1:
            return None
        ((producer,),) = producers
        written = self._channels.written[producer]
        order = np.argsort(written, kind="stable")
        return InputSpace(producer, order[np.searchsorted(written[order], read)])

    def _space(self, name, written):
        groups = [self._producers_of[c] for c in np.unique(written)]

        def names(attribute):
            found = {name for group in groups for name in getattr(group, attribute)}
            return tuple(name for name in self._layers if name in found)

        readers = (*names("carriers"), *names("consumers"))
        return ChannelSpace(
            producer=name,
            channels=len(written),
            consumers=names("consumers"),
            carriers=names("carriers"),
            tied=self._why_tied(name, written, readers),
        )

    def _why_tied(self, name, written, readers):
        for layer_name in (name, *readers):
            reason = self._why_unfit(layer_name)
            if reason:
                return reason
        for c in np.unique(written):
            group = self._producers_of[c]
            if group.frozen or len(group.producers) > 1:
                return group.frozen or self._channels.merged[c]
        for reader in readers:
            others = np.setxor1d(self._channels.read[reader], written)
            if len(others):
                return f"'{reader}' does not read all of them, or reads others too"
        return ""

    def _why_unfit(self, name):
        layer = self._layers[name]
        if self._times[name] > 1:
            return f"'{name}' is called {self._times[name]} times"
        if getattr(layer, "groups", 1) > 1:
            return f"'{name}' has groups"
        if channel_axis(layer) != -1:
            return f"'{name}' is channels_first"
        return ""
