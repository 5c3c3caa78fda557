"""Plain channel pruning: what decomposition is compared with."""

import keras
import numpy as np
from keras import ops

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_groups
from tfcompress.schemes.decomposition.factorize import Factorize
from tfcompress.schemes.decomposition.search_space import removable_classes
from tfcompress.schemes.decomposition.selection import Scores, choose_cut
from tfcompress.schemes.decomposition.width_model import WidthModel


def l1_pruned(model, macs):
    """The same model without the filters of the smallest L1 norm (Li et al., 2017).

    Channels that additions tie go together, by the mean of their norms relative to
    their layers'; one threshold holds for all layers.

    Args:
        model: a trained Functional model.
        macs: the budget, a count.

    Returns:
        A Functional model with the weights of what stays.
    """
    graph = Graph(model)
    channels = Channels(graph)
    named = graph.layers()
    norms = np.zeros(len(channels.frozen))
    layers = np.zeros(len(channels.frozen))
    for name, classes in channels.written.items():
        if Factorize.why_not(named[name]) is not None:
            continue
        kernel = np.abs(ops.convert_to_numpy(named[name].kernel))
        per_filter = kernel.reshape(-1, kernel.shape[-1]).sum(axis=0)
        norms[classes] += per_filter / per_filter.mean()
        layers[classes] += 1
    return _pruned(model, channels, norms / np.maximum(layers, 1), macs)


def narrow(model, macs):
    """The same architecture with all layers narrower by one factor, untrained."""
    channels = Channels(Graph(model))
    place = np.zeros(len(channels.frozen))
    for group in channels.groups:
        place[group.classes] = np.linspace(0, 1, len(group.classes))
    return keras.models.clone_model(_pruned(model, channels, place, macs))


def _pruned(model, channels, scores, macs):
    named = Graph(model).layers()
    prunable = [n for n, layer in named.items() if Factorize.why_not(layer) is None]
    removable = removable_classes(channels, prunable)
    groups = [g.classes for g in channels.groups if removable[g.classes].all()]
    scores = Scores(np.where(removable, scores, np.inf), groups, ranks={})
    cut = choose_cut(WidthModel(model, channels, "macs", (), 1.0), scores, macs)
    return remove_groups(model, channels, ~cut.alive)
