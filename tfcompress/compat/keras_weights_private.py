"""Private APIs of Keras for the weights of a layer.

Each function names one, and says why no public one serves. `tests/compat` has a test
for each.
"""

from typing import Any

import keras


def kernel_variable(layer: keras.layers.Layer, name: str = "kernel") -> Any:
    """Returns the variable of a convolution, dense layer or embedding's kernel.

    `Dense.kernel`, `BaseConv.kernel` and `Embedding.embeddings` are properties over
    `_kernel` and `_embeddings`. A subclass that computes its kernel from the variable
    has no other name for it. Keras creates the variable under the name of the property,
    which is not documented either.

    Args:
        layer: built layer.
        name: name of the property, "kernel" or "embeddings".
    """
    return getattr(layer, f"_{name}")


def set_kernel_variable(layer: keras.layers.Layer, variable: Any) -> None:
    """Stores the variable of a kernel where `kernel_variable` finds it."""
    layer._kernel = variable


def do_not_autocast(variable: keras.Variable) -> None:
    """Makes layers read a variable in its own dtype under mixed precision.

    The public argument `autocast` is one of `add_weight`, which a user's layer calls.
    """
    variable._autocast = False


def untrack_weight(layer: keras.layers.Layer, variable: Any) -> None:
    """Removes a variable from the weights of a layer, while the layer is built.

    Keras has no public counterpart of `add_weight`.
    """
    layer._untrack_variable(variable)
