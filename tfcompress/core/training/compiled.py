"""Functions of a model outside of `fit`, compiled."""

import keras
from keras import ops


def compiled(model, function):
    """Compiles a function that calls a model.

    Called eagerly, a student runs hundreds of small operations per batch.

    Args:
        model: a Functional or Sequential model.
        function: from a batch of inputs to a structure of tensors.

    Returns:
        Function from a batch of inputs to that structure of NumPy arrays. Whether it
        also updates the model's variables depends on the backend.
    """
    backend = keras.backend.backend()
    run = function
    if backend == "tensorflow":
        import tensorflow as tf  # not at the top: other backends do without it

        run = tf.function(function)
    elif backend == "jax":
        run = _jax_compiled(model, function)
    return lambda inputs: keras.tree.map_structure(ops.convert_to_numpy, run(inputs))


def _jax_compiled(model, function):
    import jax

    variables = model.variables

    @jax.jit
    def pure(values, inputs):
        state = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return function(inputs)

    def run(inputs):
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        return pure([variable.value for variable in variables], inputs)

    return run
