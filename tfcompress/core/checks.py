"""Checks of a model before it is compressed or finalized."""

import keras
import numpy as np
from keras import ops

from tfcompress.arguments import listed
from tfcompress.compat import keras_private
from tfcompress.core.tied_weights import check_not_tied
from tfcompress.graph.graph import Graph, check_has_graph, is_model, own_classes
from tfcompress.layers.cloning import clone_layer

# Last sentence of errors about a student.
DIVERGED = "Its training diverged: lower the learning rate."
# Weights of trainings that did not diverge are far below.
_LARGE = 1e4


def check_finite(model: keras.Model, hint: str) -> None:
    """Checks that all weights are finite.

    Args:
        model: built `keras.Model`.
        hint: str. Last sentence of the error.

    Raises:
        ValueError: if a weight is NaN or infinite; the error names the variables.
    """
    bad = _not_finite(model)
    if bad:
        raise ValueError(
            f"All weights of '{model.name}' must be finite. Received NaN or "
            f"infinity in: {listed(bad)}. {hint}"
        )


def check_finite_outputs(model: keras.Model, hint: str) -> None:
    """Checks that very large weights do not make outputs NaN or infinite.

    Only models of float inputs of known sizes are checked, on inputs of ones. Models of
    usual weights are not, since some of them are not finite on such inputs.

    Args:
        model: Functional model with finite weights.
        hint: str. Last sentence of the error.

    Raises:
        ValueError: if an output is not finite.
    """
    weights = [x for x in model.weights if "float" in x.dtype]
    largest = max((float(ops.max(ops.abs(x))) for x in weights), default=0.0)
    taken = all("float" in x.dtype and None not in x.shape[1:] for x in model.inputs)
    if largest < _LARGE or not taken:
        return
    ones = [np.ones((x.shape[0] or 1, *x.shape[1:]), x.dtype) for x in model.inputs]
    inputs = keras.tree.pack_sequence_as(model.input, ones)
    outputs = keras.tree.flatten(model(inputs, training=False))
    if not all(np.isfinite(ops.convert_to_numpy(x)).all() for x in outputs):
        raise ValueError(
            f"Finite outputs of '{model.name}' are expected. Received: NaN or infinity "
            f"on inputs of ones, with weights up to {largest:.3g}. {hint}"
        )


def check_finite_activations(layer: str, *values: np.ndarray) -> None:
    """Checks that the values that a layer has computed or read are finite.

    Args:
        layer: str. Name of the layer.
        values: float arrays.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    if not all(np.isfinite(x).all() for x in values):
        raise ValueError(
            f"Finite activations are expected in '{layer}'. Received NaN or infinity: "
            "the training diverged, or the data hold such values. Lower the learning "
            "rate, or check the data."
        )


def is_finite(model: keras.Model) -> bool:
    """Returns whether all weights of a built model are finite."""
    return not _not_finite(model)


def _not_finite(model):
    return [
        variable.path
        for variable in model.weights
        if not np.isfinite(ops.convert_to_numpy(variable)).all()
    ]


def check_compressible(model: keras.Model) -> None:
    """Checks that a user's model can be compressed.

    Raises:
        TypeError: if it is no Keras 3 model.
        ValueError: if it has no graph, a `call` of its own, an operation that cannot be
            copied, a layer that is called on an open number of channels, two layers
            that share a variable, weights that are not finite, or trainable weights in
            another float type than float32.
    """
    if not isinstance(model, keras.Model):
        origin = type(model).__module__.split(".")[0]
        hint = (
            "Models of tf_keras (Keras 2) must be saved and loaded in Keras 3."
            if origin in ("tf_keras", "tensorflow")
            else "Build it with `keras`, or load it with `keras.models.load_model`."
        )
        raise TypeError(
            "A Keras 3 model is expected. Received an object of type "
            f"{type(model).__module__}.{type(model).__name__}. {hint}"
        )
    check_has_graph(model)
    check_call(model)
    graph = Graph(model)
    calls = graph.calls
    _check_channels(calls)
    check_not_tied(graph)
    for call in calls:
        if not isinstance(call.operation, keras.layers.Layer):
            clone_layer(call.operation)  # raises before anything is done
    low = {
        variable.path: variable.dtype
        for variable in model.trainable_variables
        if variable.dtype != "float32" and "float" in variable.dtype
    }
    if low:
        path, dtype = next(iter(low.items()))
        raise ValueError(
            "Low-bit training needs float32 weights. Received: "
            f"{len(low)} variables of other types, first '{path}' in {dtype}. "
            "Build the model under the float32 or a mixed_* dtype policy; those "
            "compute in 16 bits but keep float32 weights."
        )
    check_finite(model, "Load or train a healthy model first.")


def _check_channels(calls):
    """Checks that layers know the sizes that their weights depend on.

    A layer that was built before takes inputs of open size there, and no new layer can
    be made for them.
    """
    for call in calls:
        specs = keras.tree.flatten(getattr(call.operation, "input_spec", None))
        for spec, tensor in zip(specs, call.inputs, strict=False):
            for axis, size in (getattr(spec, "axes", None) or {}).items():
                if size is not None and tensor.shape[axis] is None:
                    raise ValueError(
                        f"Layers with weights must be called on a known number of "
                        f"channels. Received: '{call.name}' of "
                        f"{type(call.operation).__name__} called on shape "
                        f"{tuple(tensor.shape)}, with {size} channels in its weights. "
                        "Give `keras.Input` the number of channels; other sizes may "
                        "stay None."
                    )


def check_call(model: keras.Model) -> None:
    """Checks that a model and its nested models compute what their graphs say."""
    for layer in filter(is_model, keras_private.flatten_layers(model)):
        for cls in own_classes(type(layer)):
            if not {"call", "__call__"} & set(vars(cls)):
                continue
            hint = (
                "Make it a graph: keras.Model(inputs, outputs), with the operations of "
                "`call` between them."
            )
            if cls.__module__.startswith("keras_hub."):  # it only checks inputs there
                hint = (
                    "Compress its graph, keras.Model(model.input, model.output), "
                    "and train it on the outputs of `model.preprocessor`."
                )
            raise ValueError(
                "A model that computes by its graph is expected. Received: "
                f"'{layer.name}', whose class {cls.__name__} has a `call` of its own. "
                + hint
            )
