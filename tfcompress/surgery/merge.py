"""From factorized layers to plain ones: pruned, merged or in two."""

import keras
import numpy as np
from keras import ops

from tfcompress.layers import FactorizedKernel
from tfcompress.surgery.channels import Channels
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.surgery.remove import remove_classes

PLAIN = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense)


def merge(student):
    """Plain Keras layers in place of `Factorized*` ones, without what was cut.

    A layer that lost ranks becomes two, `NAME_basis` and `NAME`; any other becomes
    one, with the product of the two as its kernel. Channels that no layer reads any
    more are removed, with all that makes them and carries them on (EDP, pruning and
    merging).

    Args:
        student: a Functional model with `FactorizedKernel` layers. It is left
            untouched.

    Returns:
        A Functional `keras.Model` of plain layers that computes the same in inference.
    """
    basis_of = {}

    def replace(layer):
        if isinstance(layer, FactorizedKernel):
            if not layer.is_decomposed():
                return _plain(layer)
            basis_of[id(layer)] = _basis(layer)
            return [basis_of[id(layer)], _coefficients(layer)]
        if layer.compute_dtype in ("float16", "bfloat16"):
            return clone_layer(layer, dtype="float32")
        return clone_layer(layer)

    model, pairs = rebuild(student, replace)
    masks = {}
    for old, new in pairs:
        if not isinstance(old, FactorizedKernel):
            copy_weights(old, new)
            continue
        reader = basis_of.get(id(old), new)
        masks[id(reader)] = ops.convert_to_numpy(old.input_mask)
        if reader is not new:
            basis, coefficients = old.factors()
            reader.kernel.assign(basis)
            new.kernel.assign(coefficients.reshape(new.kernel.shape))
        else:
            new.kernel.assign(ops.matmul(*old.factors()))
        if old.use_bias:
            new.bias.assign(old.bias)
    graph = Graph(model)
    channels = Channels(graph)
    return remove_classes(model, channels, _dead(graph, channels, masks))


def _dead(graph, channels, masks):
    """Boolean array over the classes of channels: those that all readers mask."""
    read, unmasked = np.zeros((2, len(channels.frozen)), bool)
    for name, layer in graph.layers().items():
        if id(layer) in masks and name in channels.read:
            classes = channels.read[name]
            read[classes] = True
            unmasked[classes[masks[id(layer)] > 0]] = True
    return read & ~unmasked


def _plain_class(layer):
    (kind,) = [kind for kind in PLAIN if isinstance(layer, kind)]
    return kind


def _plain_config(layer):
    config = layer.get_config()
    del config["kernel_rank"]
    config["dtype"] = "float32"
    return config


def _plain(layer):
    return _plain_class(layer).from_config(_plain_config(layer))


def _basis(layer):
    config = _plain_config(layer)
    width = "units" if isinstance(layer, keras.layers.Dense) else "filters"
    config[width] = layer.factors()[0].shape[-1]
    config.update(
        name=f"{layer.name}_basis",
        use_bias=False,
        activation=None,
        activity_regularizer=None,
    )
    return _plain_class(layer).from_config(config)


def _coefficients(layer):
    config = _plain_config(layer)
    if not isinstance(layer, keras.layers.Dense):
        config.update(kernel_size=1, strides=1, dilation_rate=1, padding="valid")
    return _plain_class(layer).from_config(config)
