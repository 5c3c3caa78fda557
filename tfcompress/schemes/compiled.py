"""Forward passes in training mode outside of `fit`, compiled."""

import keras
from keras import ops


def compiled_forward(model, variables):
    """Compiles a training-mode forward pass that tells what variables became.

    Called eagerly, a student runs hundreds of small operations per batch.

    Args:
        model: a Functional or Sequential model.
        variables: some of its non-trainable variables.

    Returns:
        Function from a batch of inputs to the list of the variables' new values,
        NumPy arrays. Whether it also updates the model's variables depends on the
        backend.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return _jax_forward(model, variables)

    def forward(inputs):
        return model(inputs, training=True)

    if backend == "tensorflow":
        import tensorflow as tf  # not at the top: other backends do without it

        forward = tf.function(forward)

    def run(inputs):
        forward(inputs)
        return [ops.convert_to_numpy(variable) for variable in variables]

    return run


def _jax_forward(model, variables):
    import jax

    order = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    wanted = [order[id(variable)] for variable in variables]

    @jax.jit
    def forward(trainable, frozen, inputs):
        _, frozen = model.stateless_call(trainable, frozen, inputs, training=True)
        return [frozen[i] for i in wanted]

    def run(inputs):
        trainable = [v.value for v in model.trainable_variables]
        frozen = [v.value for v in model.non_trainable_variables]
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        return [ops.convert_to_numpy(x) for x in forward(trainable, frozen, inputs)]

    return run
