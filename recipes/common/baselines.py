"""Baselines of decomposition: pruned and narrower networks of equal MACs."""

import keras
import numpy as np
from keras import ops

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_groups
from tfcompress.schemes.decomposition.factorize import Factorize
from tfcompress.schemes.decomposition.search_space import removable_groups
from tfcompress.schemes.decomposition.selection import Scores, choose_cut
from tfcompress.schemes.decomposition.width_model import WidthModel


def l1_pruned(model, macs):
    """Returns the model without the filters of the smallest L1 norm (Li et al., 2017).

    A score is a filter's L1 norm divided by the mean of its layer. Channels of one
    dependency group share the mean of their scores. One threshold holds for all layers.

    Args:
        model: trained Functional model.
        macs: int or float. Multiply-accumulates that the result may take.

    Returns:
        A Functional model with the weights of the filters that stay.
    """
    graph = Graph(model)
    channels = Channels(graph)
    named = graph.layers()
    norms = np.zeros(len(channels.frozen))
    layers = np.zeros(len(channels.frozen))
    for name, groups in channels.written.items():
        if Factorize.why_not(named[name]) is not None:
            continue
        kernel = np.abs(ops.convert_to_numpy(named[name].kernel))
        per_filter = kernel.reshape(-1, kernel.shape[-1]).sum(axis=0)
        norms[groups] += per_filter / per_filter.mean()
        layers[groups] += 1
    return _pruned(model, channels, norms / np.maximum(layers, 1), macs)


def narrow(model, macs):
    """Returns the architecture with all layers narrower by one factor, untrained.

    Args:
        model: Functional model.
        macs: int or float. Multiply-accumulates that the result may take.
    """
    channels = Channels(Graph(model))
    place = np.zeros(len(channels.frozen))
    for group_set in channels.group_sets:
        width = len(group_set.groups)
        place[group_set.groups] = np.linspace(0, 1, width)
    return keras.models.clone_model(_pruned(model, channels, place, macs))


def _pruned(model, channels, scores, macs):
    named = Graph(model).layers()
    prunable = [n for n, layer in named.items() if Factorize.why_not(layer) is None]
    removable = removable_groups(channels, prunable)
    groups = [s.groups for s in channels.group_sets if removable[s.groups].all()]
    scores = Scores(np.where(removable, scores, np.inf), groups, ranks={})
    cut = choose_cut(WidthModel(model, channels, "macs", (), 1.0), scores, macs)
    return remove_groups(model, channels, ~cut.alive)
