"""Conversion of a Keras model to a float `.tflite` of the same graph."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator

import keras
from keras import ops

from tfcompress import layers
from tfcompress.graph.graph import check_has_graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers.cloning import config_of
from tfcompress.litert.signature import functional


def float_tflite(model: keras.Model) -> bytes:
    """Converts a model to a `.tflite` with float32 kernels, by TensorFlow's converter.

    Size and latency of packed files are compared with this file.

    Args:
        model: a built Functional or Sequential model; packed layers are decoded.

    Returns:
        The file's content. Inputs are named `input_0`, ..., and outputs `output_0`,
        ..., in the order of `keras.tree.flatten(model.input)` and
        `keras.tree.flatten(model.output)`.

    Raises:
        ValueError: if the model has no graph or an operation without LiteRT
            counterpart, or Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Conversion needs Keras on the TensorFlow backend. Received: "
            f"{keras.backend.backend()}. Save the model as `.keras` and export it "
            "in a process with KERAS_BACKEND=tensorflow."
        )
    check_has_graph(model)
    return _convert(_decode(functional(model)))


def _decode(model):
    """Copies a model, with plain Keras layers and float kernels for packed ones."""

    def replace(layer):
        if not isinstance(layer, layers.PackedKernel):
            return clone_layer(layer)
        config = config_of(layer)
        del config["kernel_bits"]
        return layer.forms.plain.from_config(config)

    decoded, pairs = rebuild(model, replace)
    for old, new in pairs:
        if isinstance(old, layers.PackedKernel):
            bias = [old.bias] if old.use_bias else []
            new.set_weights([ops.convert_to_numpy(x) for x in [old.kernel, *bias]])
        else:
            copy_weights(old, new)
    return decoded


def _convert(model):
    import tensorflow as tf  # not at the top: a machine that only trains may lack it

    # Weights are constants of the traced graph. The converter then has no variables to
    # freeze, and takes 1 s for a ResNet-20 instead of 5 s.
    trainable, frozen = (
        [tf.constant(ops.convert_to_numpy(variable)) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @tf.function(autograph=False)
    def serve(*inputs):
        inputs = keras.tree.pack_sequence_as(model.input, inputs)
        outputs, _ = model.stateless_call(trainable, frozen, inputs, training=False)
        outputs = keras.tree.flatten(outputs)
        return {f"output_{i}": output for i, output in enumerate(outputs)}

    specs = [
        tf.TensorSpec(x.shape, x.dtype, name=f"input_{i}")
        for i, x in enumerate(keras.tree.flatten(model.input))
    ]
    with captured_stderr() as log:
        try:
            graph = serve.get_concrete_function(*specs)
            converter = tf.lite.TFLiteConverter.from_concrete_functions(
                [graph], tf.Module()
            )
            return converter.convert()
        except Exception as error:
            raise ValueError(
                f"Model '{model.name}' could not be converted to .tflite. It may use "
                "an operation that LiteRT lacks; the converter says: "
                f"{error}\n{log()}"
            ) from error


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirects the process's stderr, also of C++ code, to a temporary file.

    Yields:
        Function that returns the last 2000 bytes of the file as text.
    """
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)

        def tail():
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            return log.read().decode(errors="replace")

        try:
            yield tail
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
