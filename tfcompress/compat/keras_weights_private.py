"""Private APIs of Keras for the weights of a layer that is being built.

Each function names one, and says why no public one serves. `tests/compat` has a test
for each.
"""

from typing import Any

import keras


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
