"""Private and undocumented APIs of Keras that the library depends on.

Each function names one, and says why no public one serves. `tests/compat` has a test
for each.
"""

from collections.abc import Callable
from typing import Any

import keras

# Keras's layers create their kernel under this name, which no document promises.
KERNEL_NAME = "kernel"


def kernel_variable(layer: keras.layers.Layer) -> Any:
    """The variable of a convolution or dense layer's kernel.

    `Dense.kernel` and `BaseConv.kernel` are properties over `_kernel`: a subclass can
    compute a kernel from the variable only by this name.
    """
    return layer._kernel


def set_kernel_variable(layer: keras.layers.Layer, variable: Any) -> None:
    """Stores the variable of a kernel where `kernel_variable` finds it."""
    layer._kernel = variable


def causal_padding(layer: keras.layers.Conv1D) -> list:
    """The paddings, as `ops.pad` takes them, of a causal convolution's input.

    Keras computes them within `Conv1D.call`, which takes no other kernel.
    """
    return layer._compute_causal_padding()


def run_through_graph(
    model: keras.Model, inputs: Any, operation_fn: Callable[[Any], Callable]
) -> Any:
    """Calls a Functional model's operations in order, each through `operation_fn`.

    `Function.call` walks the graph this way. The public `clone_model` needs a loss that
    it can clone, keeps the shapes of the inputs, and records new calls in old layers.
    """
    return model._run_through_graph(inputs, operation_fn=operation_fn)


def step_count(optimizer: keras.optimizers.Optimizer) -> Any:
    """The variable that counts an optimizer's steps.

    The public `iterations` counts updates, of which accumulated gradients make one in
    several steps.
    """
    return optimizer._iterations


def learning_rate_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """The schedule, or the variable, that an optimizer's learning rate comes from.

    The public `learning_rate` is the value of one step.
    """
    return getattr(optimizer, "_learning_rate", None)


def untrack_variable(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Removes a variable that `add_variable` gave an optimizer.

    Without that an optimizer saves variables that a new one cannot load. Keras has no
    public counterpart of `add_variable`.
    """
    optimizer._untrack_variable(variable)


def rebuild_train_function(model: keras.Model) -> None:
    """Compiles the training step anew, with the constants and variables of now.

    The argument `force` is undocumented.
    """
    model.make_train_function(force=True)


def sync_variables(model: keras.Model) -> None:
    """Brings the variables of a model in training up to date, on JAX.

    JAX's trainer keeps their values apart while `fit` runs.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer and all layers within it.

    Only models have the public `layers`.
    """
    return layer._flatten_layers()
