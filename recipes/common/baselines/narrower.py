"""Baselines of decomposition: pruned and narrower networks of equal MACs."""

import keras
import numpy as np
from keras import ops

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_groups
from tfcompress.schemes.decomposition.factorize import Factorize
from tfcompress.schemes.decomposition.scoring import Scores
from tfcompress.schemes.decomposition.search_space import removable_groups
from tfcompress.schemes.decomposition.selection import select
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
    layers = graph.layers()
    norms = np.zeros(len(channels.frozen))
    writers = np.zeros(len(channels.frozen))
    for name, groups in channels.written.items():
        if Factorize.why_not(layers[name]) is not None:
            continue
        kernel = np.abs(ops.convert_to_numpy(layers[name].kernel))
        per_filter = kernel.reshape(-1, kernel.shape[-1]).sum(axis=0)
        norms[groups] += per_filter / per_filter.mean()
        writers[groups] += 1
    return _pruned(model, channels, norms / np.maximum(writers, 1), macs)


def narrow(model, macs):
    """Returns the architecture with all layers narrower by one factor, untrained.

    Args:
        model: Functional model.
        macs: int or float. Multiply-accumulates that the result may take.
    """
    channels = Channels(Graph(model))
    positions = np.zeros(len(channels.frozen))
    for group_set in channels.group_sets:
        width = len(group_set.groups)
        positions[group_set.groups] = np.linspace(0, 1, width)
    return keras.models.clone_model(_pruned(model, channels, positions, macs))


def _pruned(model, channels, scores, macs):
    layers = Graph(model).layers()
    prunable = [n for n, layer in layers.items() if Factorize.why_not(layer) is None]
    removable = removable_groups(channels, prunable)
    sets = [s.groups for s in channels.group_sets if removable[s.groups].all()]
    scores = Scores(np.where(removable, scores, np.inf), sets, ranks={})
    selection = select(WidthModel(model, channels, "macs", (), 1.0), scores, macs)
    return remove_groups(model, channels, ~selection.keep_groups)
