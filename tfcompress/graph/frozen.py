"""Layers of a user's model that are frozen, as base models often are."""

from collections.abc import Sequence

import keras

from tfcompress.graph.batch_norm import foldable
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild


def frozen_layers(model: keras.Model, graph: Graph) -> set[str]:
    """Returns the names of the layers whose kernels do not train in a model.

    Args:
        model: built Functional or Sequential model.
        graph: `tfcompress.graph.Graph` of the model.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    frozen = set()
    for name, layer in graph.layers().items():
        kernels = [x for x in layer.weights if len(x.shape) > 1]
        if kernels and not any(id(kernel) in trained for kernel in kernels):
            frozen.add(name)
    return frozen


def unfreeze_layers(
    model: keras.Model, layers: Sequence[keras.layers.Layer]
) -> keras.Model:
    """Returns a model in which certain layers train.

    The batch normalization after such a layer trains, too. A model that is frozen as a
    whole keeps its other layers frozen.

    Args:
        model: built Functional or Sequential model. It is left untouched.
        layers: layers of the model.

    Returns:
        A copy, or `model` itself if nothing changes.
    """
    if not layers and model.trainable:
        return model
    graph = Graph(model)
    norms = [foldable(graph, layer) for layer in layers]
    trainable = {id(layer): True for layer in (*layers, *norms) if layer is not None}
    if not model.trainable:
        for layer in graph.layers().values():
            if layer.weights:
                trainable.setdefault(id(layer), False)
    if not trainable:
        return model

    def replace(layer):
        if id(layer) not in trainable:
            return clone_layer(layer)
        return clone_layer(layer, trainable=trainable[id(layer)])

    copy, pairs = rebuild(model, replace)
    for old, new in pairs:
        copy_weights(old, new)
    return copy
