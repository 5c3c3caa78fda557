"""Choice of the layers that LiteRT runs faster as two, with a patched timer."""

import numpy as np

import tfcompress as tfc
from tests.small_net import small_net
from tfcompress import litert
from tfcompress.litert.runtime import Runner
from tfcompress.schemes.decomposition.latency import RUNS, slower_when_decomposed
from tfcompress.schemes.decomposition.selection import Selection

MEASURED = tfc.Decomposition(macs="1/2", margin="measured")


def input_shape(file):
    ((_, details),) = Runner(file).inputs
    return tuple(details["shape"])


def test_layers_that_are_slower_as_two_are_returned(monkeypatch):
    """The timer says so of every other layer."""
    student = tfc.compress(small_net(), MEASURED)
    space = student.rank_space
    keep_ranks = {
        name: np.arange(layer.rank_mask.shape[0]) < 1
        for name, layer in space.layers.items()
    }
    keep_groups = np.ones(len(space.removable), bool)
    keep_groups[space.channels.written["conv0"][5:]] = False
    shapes = []

    def latency(files, runs):
        assert runs == RUNS
        merged, decomposed = map(input_shape, files)
        assert merged == decomposed
        shapes.append(merged)
        return [1.0, 0.5 + len(shapes) % 2]

    monkeypatch.setattr(litert, "latency", latency)
    slower = slower_when_decomposed(space, Selection(keep_groups, keep_ranks, 0.0))
    assert slower == ["conv0", "conv2"]
    # Input channels are those that the selection keeps.
    assert shapes == [(1, 28, 28, 1), (1, 14, 14, 5), (1, 7, 7, 16), (1, 32)]


def test_layers_with_all_ranks_are_not_timed(monkeypatch):
    student = tfc.compress(small_net(), MEASURED)
    space = student.rank_space
    keep_ranks = {n: np.ones(x.rank_mask.shape, bool) for n, x in space.layers.items()}
    monkeypatch.setattr(litert, "latency", None)
    keep_groups = np.ones(len(space.removable), bool)
    selection = Selection(keep_groups, keep_ranks, 0.0)
    assert slower_when_decomposed(space, selection) == []
