"""A new model from an old one, layer by layer."""

import functools

import keras

from tfcompress.compat import keras_private
from tfcompress.graph.graph import is_model


def clone_layer(layer, **changes):
    """A fresh layer of the same class and configuration, with `changes` to it."""
    return type(layer).from_config({**layer.get_config(), **changes})


def copy_weights(old, new):
    """Gives a layer the weights of another with the same variables."""
    new.set_weights(old.get_weights())
    if isinstance(new, keras.layers.Normalization):
        # It computes with tensors that are derived from its weights.
        new.finalize_state()


def rebuild(model, replace, replace_operation=None, model_class=keras.Model):
    """Builds the same graph from new layers; the old model is left untouched.

    Args:
        model: a built Functional or Sequential model.
        replace: function from an old layer to its unbuilt replacement, to a
            list of layers to call one after the other, the last of which is the
            replacement, or to None to take the layer out of the graph (its input
            passes through). Called once per layer.
        replace_operation: function from an operation that is no layer to what is
            called in its place, with the same arguments. By default such
            operations are cloned.
        model_class: class of the result; nested models become `keras.Model`, with
            inputs of the shape that they are called with.

    Returns:
        `(new_model, replacements)`: a Functional model with new, not yet copied
        weights, and the list of `(old layer, new layer)` pairs of all levels.
    """
    replace_operation = replace_operation or clone_layer
    new = {}

    def replacement(operation):
        if id(operation) not in new:
            if is_model(operation):
                built = _Nested(lambda inputs: build(operation, inputs, keras.Model))
            elif isinstance(operation, keras.layers.Layer):
                built = replace(operation)
            else:
                built = replace_operation(operation)
            chain = built if isinstance(built, list) else [built or _pass_through]
            new[id(operation)] = (operation, chain)
        chain = new[id(operation)][1]
        return chain[0] if len(chain) == 1 else functools.partial(_call_all, chain)

    def build(model, tensors, model_class):
        """A model with inputs like `tensors`, whose structure is that of its own."""
        is_sequential = isinstance(model, keras.Sequential)
        shapes = iter([tensor.shape for tensor in keras.tree.flatten(tensors)])
        inputs = keras.tree.map_structure(
            lambda old: keras.Input(
                batch_shape=_called_shape(old.shape, next(shapes)),
                dtype=old.dtype,
                name=old.name,
            ),
            model.inputs[0] if is_sequential else model.input,
        )
        if is_sequential:
            outputs = inputs
            for layer in model.layers:
                outputs = replacement(layer)(outputs)
        else:
            outputs = keras_private.run_through_graph(model, inputs, replacement)
        return model_class(inputs=inputs, outputs=outputs, name=model.name)

    new_model = build(model, model.inputs, model_class)
    pairs = [
        (old, chain[-1])
        for old, chain in new.values()
        if isinstance(chain[-1], keras.layers.Layer)
    ]
    return new_model, pairs


class _Nested:
    """A nested model that is built when it is first called."""

    def __init__(self, build):
        self._build = build
        self._model = None

    def __call__(self, inputs, *args, **kwargs):
        self._model = self._model or self._build(inputs)
        return self._model(inputs, *args, **kwargs)


def _called_shape(declared, called):
    """The declared shape, with the sizes of the call where it is not open."""
    return [
        size if size is None or new is None else new
        for size, new in zip(declared, called, strict=True)
    ]


def _pass_through(x, *args, **kwargs):
    return x


def _call_all(chain, x, *args, **kwargs):
    for layer in chain[:-1]:
        x = layer(x)
    return chain[-1](x, *args, **kwargs)
