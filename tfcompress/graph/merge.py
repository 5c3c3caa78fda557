"""From factorized layers to plain ones: pruned, merged or in two."""

import inspect

import keras
import numpy as np
from keras import ops

from tfcompress.graph.channels import Channels
from tfcompress.graph.dead_branches import remove_dead_branches
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.graph.remove import remove_classes
from tfcompress.layers import FactorizedKernel

PLAIN = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense)


def merge(student):
    """Plain Keras layers in place of `Factorized*` ones, without what was cut.

    A layer that lost ranks becomes two, `NAME_basis` and `NAME`; any other becomes
    one, with the product of the two as its kernel. Channels that no layer reads any
    more are removed, with all that makes them and carries them on (EDP, pruning and
    merging); so are residual branches that became constant.

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
                return one_layer(layer)
            basis, coefficients = two_layers(layer, layer.factors()[0].shape[-1])
            basis_of[id(layer)] = basis
            return [basis, coefficients]
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
        basis, coefficients, bias = old.factors()
        if reader is not new:
            reader.kernel.assign(basis)
            new.kernel.assign(coefficients.reshape(new.kernel.shape))
        else:
            new.kernel.assign(ops.matmul(basis, coefficients))
        if bias is not None:
            new.bias.assign(bias)
    graph = Graph(model)
    channels = Channels(graph)
    smaller = remove_classes(model, channels, _dead(graph, channels, masks))
    return remove_dead_branches(smaller)


def _dead(graph, channels, masks):
    """Boolean array over the classes of channels: those that all readers mask."""
    read, unmasked = np.zeros((2, len(channels.frozen)), bool)
    for name, layer in graph.layers().items():
        if id(layer) in masks and name in channels.read:
            classes = channels.read[name]
            read[classes] = True
            unmasked[classes[masks[id(layer)] > 0]] = True
    return read & ~unmasked


def one_layer(layer, **changes):
    """The plain layer, not built, of a factorized one, with changed arguments."""
    (kind,) = [kind for kind in PLAIN if isinstance(layer, kind)]
    known = inspect.signature(kind).parameters.keys() | {"name", "trainable"}
    config = {k: value for k, value in layer.get_config().items() if k in known}
    return kind.from_config({**config, "dtype": "float32", **changes})


def two_layers(layer, rank, **changes):
    """The basis and the coefficients of a factorized layer as plain layers, not built.

    Args:
        layer: a `FactorizedKernel`.
        rank: filters of the basis.
        changes: arguments of the second layer that change.
    """
    basis = one_layer(
        layer,
        name=f"{layer.name}_basis",
        use_bias=False,
        activation=None,
        activity_regularizer=None,
        **{width_argument(layer): rank},
    )
    if not isinstance(layer, keras.layers.Dense):
        pointwise = {"kernel_size": 1, "strides": 1, "dilation_rate": 1}
        changes = {**pointwise, "padding": "valid", **changes}
    return basis, one_layer(layer, **changes)


def width_argument(layer):
    """The argument of a convolution or dense layer that sets its output channels."""
    return "units" if isinstance(layer, keras.layers.Dense) else "filters"
