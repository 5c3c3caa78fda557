"""Conversion of a Keras model to a float `.tflite` of the same graph."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator

import keras
from keras import ops

from tfcompress import layers
from tfcompress.compat.litert_private import keep_kernels
from tfcompress.cost.input_shape import example_input_shape
from tfcompress.graph.graph import check_has_graph
from tfcompress.graph.levels.integer_forms import in_float
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.graph.signature import functional
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import copy_other_weights, kernel_of
from tfcompress.litert.batch import with_free_batch
from tfcompress.progress_bar import announced
from tfcompress.types import Tensor

# Longest message of the converter in an error.
MESSAGE_LENGTH = 300


def float_tflite(model: keras.Model, batch_size: int | None = None) -> bytes:
    """Converts a model to a `.tflite` with float32 kernels, by TensorFlow's converter.

    Size and latency of packed files are compared with this file.

    Args:
        model: a built Functional or Sequential model; packed layers are decoded.
        batch_size: int. Batch that the file is to take, or None for the model's.

    Returns:
        The file's content. Inputs are named `input_0`, ..., and outputs `output_0`,
        ..., in the order of `keras.tree.flatten(model.input)` and
        `keras.tree.flatten(model.output)`. The batch is free if the model's is. Some
        operations, such as loops over steps, can only be converted for one sample;
        then it is freed afterwards (see `with_free_batch`), or else stays 1.

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
    with announced("Conversion to .tflite"):
        model = functional(model)
        resizes = _has_free_sizes(model) or batch_size is not None
        return _convert(_decode(in_float(model), resizes), batch_size)


def _decode(model, resizes):
    """Copies a model, with plain Keras layers and float kernels for packed ones.

    Args:
        model: a Functional model.
        resizes: whether images are repeated by an operator of their own, instead of by
            TILE, which few devices have.
    """

    def replace(layer):
        if resizes and _FreeUpSampling2D.replaces(layer):
            return _FreeUpSampling2D.from_config(layer.get_config())
        if not isinstance(layer, layers.PackedKernel):
            return clone_layer(layer)
        config = config_of(layer)
        del config["kernel_bits"]
        return layer.forms.plain.from_config(config)

    decoded, pairs = rebuild(model, replace)
    for old, new in pairs:
        if isinstance(old, layers.PackedKernel):
            kernel_of(new).assign(ops.convert_to_numpy(old.compute_kernel()))
            copy_other_weights(old, new)
        else:
            copy_weights(old, new)
    return decoded


def _has_free_sizes(model):
    return any(None in tensor.shape[1:] for tensor in model.inputs)


class _FreeUpSampling2D(keras.layers.UpSampling2D):
    """`UpSampling2D` by an operator of LiteRT that takes images of any size.

    Keras repeats rows and columns. The converter loses the number of channels there if
    sizes are free, and cannot convert the next convolution.
    """

    @staticmethod
    def replaces(layer: keras.layers.Layer) -> bool:
        """Returns whether this layer computes the same as another."""
        return (
            type(layer) is keras.layers.UpSampling2D
            and layer.data_format == "channels_last"
            and layer.interpolation in ("nearest", "bilinear")
        )

    def call(self, inputs: Tensor) -> Tensor:
        import tensorflow as tf  # not at the top: see `_converted`

        sizes = tf.shape(inputs)[1:3] * self.size
        return tf.image.resize(inputs, sizes, self.interpolation)


def _convert(model, batch_size):
    """Converts at the model's batch, or at one sample where only that is possible."""
    shapes = [tuple(x.shape) for x in keras.tree.flatten(model.input)]
    if batch_size is not None:
        shapes = [(batch_size, *shape[1:]) for shape in shapes]
    try:
        return _converted(model, shapes)
    except _ConverterError as error:
        message = str(error)
    if all(shape[:1] == (None,) for shape in shapes):
        try:
            return with_free_batch(
                _converted(model, [(1, *shape[1:]) for shape in shapes])
            )
        except _ConverterError as error:
            message = str(error)
    free_hint = (
        " Some operations can only be converted for inputs of known sizes, such as "
        f"{example_input_shape(model)}: make `inputs` of these by keras.Input, and "
        "export keras.Model(inputs, model(inputs))."
        if _has_free_sizes(model)
        else ""
    )
    raise ValueError(
        f"Model '{model.name}' could not be converted to .tflite. It may use an "
        "operation that LiteRT lacks:\nreplace it by others, or let the model end "
        f"before it, and compute it outside.{free_hint} The converter says:\n{message}"
    )


class _ConverterError(Exception):
    """First line that the converter says of an error."""


def _converted(model, shapes):
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
        tf.TensorSpec(shape, x.dtype, name=f"input_{i}")
        for i, (x, shape) in enumerate(
            zip(keras.tree.flatten(model.input), shapes, strict=True)
        )
    ]
    with captured_stderr() as log:
        try:
            graph = serve.get_concrete_function(*specs)
            converter = tf.lite.TFLiteConverter.from_concrete_functions(
                [graph], tf.Module()
            )
            keep_kernels(converter)
            return converter.convert()
        except Exception as error:
            raise _ConverterError(_first_line(f"{error}\n{log()}")) from error


def _first_line(text):
    """The first error in what the converter says, without the place in its input."""
    found = re.search(r"error: (.+)", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = found[1] if found else next(iter(lines), "nothing")
    return line[:MESSAGE_LENGTH]


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
