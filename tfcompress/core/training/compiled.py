"""Compilation of functions that call a model outside of `fit`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def compiled(
    model: keras.Model, function: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Compiles a function that calls a model.

    Without compilation a student runs hundreds of small operations per batch.

    Args:
        model: Functional or Sequential model.
        function: function from a batch of inputs to a structure of tensors.

    Returns:
        Function from a batch of inputs to the same structure of NumPy arrays. Whether
        it also updates the model's variables depends on the backend.
    """
    backend = keras.backend.backend()
    run = function
    if backend == "tensorflow":
        import tensorflow as tf  # not at the top: other backends do not need it

        run = tf.function(function, reduce_retracing=True)
    elif backend == "jax":
        run = _jax_compiled(model, function)
    return lambda inputs: keras.tree.map_structure(ops.convert_to_numpy, run(inputs))


def _jax_compiled(model: keras.Model, function: Callable) -> Callable:
    import jax

    variables = model.variables

    @jax.jit
    def pure(values, inputs):
        state = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return function(inputs)

    def run(inputs):
        inputs = keras.tree.map_structure(
            lambda x: None if x is None else ops.convert_to_tensor(x), inputs
        )
        return pure([variable.value for variable in variables], inputs)

    return run
