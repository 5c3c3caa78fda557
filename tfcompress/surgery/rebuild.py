"""A new model from an old one, layer by layer."""

import functools

import keras

from tfcompress.surgery.graph import is_model


def clone_layer(layer, **changes):
    """A fresh layer of the same class and configuration, with `changes` to it."""
    return type(layer).from_config({**layer.get_config(), **changes})


def copy_weights(old, new):
    """Gives a layer the weights of another with the same variables."""
    new.set_weights(old.get_weights())
    if isinstance(new, keras.layers.Normalization):
        # It computes with tensors that are derived from its weights.
        new.finalize_state()


def rebuild(model, replace, model_class=keras.Model):
    """Builds the same graph from new layers; the old model is left untouched.

    Args:
        model: a built Functional or Sequential model.
        replace: function from an old layer to its unbuilt replacement, to a
            list of layers to call one after the other, the last of which is the
            replacement, or to None to take the layer out of the graph (its input
            passes through). Called once per layer; operations that are not
            layers are cloned.
        model_class: class of the result; nested models become `keras.Model`.

    Returns:
        `(new_model, replacements)`: a Functional model with new, not yet copied
        weights, and the list of `(old layer, new layer)` pairs of all levels.
    """
    new = {}

    def replacement(operation):
        if id(operation) not in new:
            if is_model(operation):
                built = build(operation, keras.Model)
            elif isinstance(operation, keras.layers.Layer):
                built = replace(operation)
            else:
                built = clone_layer(operation)
            chain = built if isinstance(built, list) else [built or _pass_through]
            new[id(operation)] = (operation, chain)
        chain = new[id(operation)][1]
        return chain[0] if len(chain) == 1 else functools.partial(_call_all, chain)

    def build(model, model_class):
        if isinstance(model, keras.Sequential):
            (old_input,) = model.inputs
            inputs = keras.Input(
                batch_shape=old_input.shape, dtype=old_input.dtype, name=old_input.name
            )
            outputs = inputs
            for layer in model.layers:
                outputs = replacement(layer)(outputs)
        else:
            # Keras clones a compiled model with its loss, which it may not be able to.
            uncompiled = keras.Model(model.input, model.output)
            clone = keras.models.clone_model(
                uncompiled,
                clone_function=replacement,
                call_function=lambda layer, *args, **kwargs: layer(*args, **kwargs),
            )
            inputs, outputs = clone.input, clone.output
        return model_class(inputs=inputs, outputs=outputs, name=model.name)

    new_model = build(model, model_class)
    pairs = [
        (old, chain[-1])
        for old, chain in new.values()
        if isinstance(chain[-1], keras.layers.Layer) and not is_model(old)
    ]
    return new_model, pairs


def _pass_through(x, *args, **kwargs):
    return x


def _call_all(chain, x, *args, **kwargs):
    for layer in chain[:-1]:
        x = layer(x)
    return chain[-1](x, *args, **kwargs)
