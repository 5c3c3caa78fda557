"""Step from a student back to plain layers."""

import keras
import numpy as np

from tfcompress import layers
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.layers.kernel import copy_other_weights, kernel_of, value_of
from tfcompress.progress_bar import progress_bar


def dequantize(student: keras.Model) -> keras.Model:
    """Makes a plain model with the values of a student's quantized kernels.

    It can be compressed again. A chain of trainings, each from the weights of the one
    before, reaches very small sizes (arXiv 1910.05897).

    Args:
        student: model from `tfcompress.compress` with float activations. It is left
            untouched.

    Returns:
        A Functional `keras.Model` of Keras's own layers in float32, batch normalization
        included. It predicts as the student does in inference.

    Raises:
        ValueError: if no layer has a quantized kernel, or one has a quantized input,
            which no plain layer has.
    """
    quantized = {
        name: layer
        for name, layer in Graph(student).layers().items()
        if isinstance(layer, layers.QuantizedKernel)
    }
    if not quantized:
        raise ValueError(
            "A student with quantized kernels is expected, as `tfcompress.compress` "
            f"makes it. Received: '{student.name}', which has none."
        )
    for name, layer in Graph(student).layers().items():
        rounds = isinstance(layer, layers.QuantizedTensor)
        if rounds or getattr(layer, "input_quantizer", None) is not None:
            raise ValueError(
                "A student with float activations is expected. Received: one in which "
                f"'{name}' quantizes its input. Use `tfcompress.finalize`."
            )

    def replace(layer):
        if not isinstance(layer, layers.QuantizedKernel):
            if layer.compute_dtype in ("float16", "bfloat16"):
                return clone_layer(layer, dtype="float32")
            return clone_layer(layer)
        return layer.forms.plain.from_config(layer.plain_config())

    plain, pairs = rebuild(student, replace)
    with progress_bar(f"Plain layers of '{student.name}'", len(pairs)) as bar:
        for old, new in bar.over(pairs):
            if isinstance(old, layers.QuantizedKernel):
                kernel_of(new).assign(_quantized_kernel(old))
                copy_other_weights(old, new)
            else:
                copy_weights(old, new)
    return plain


def _quantized_kernel(layer: layers.QuantizedKernel) -> np.ndarray:
    """Quantized kernel in float32, also of students in mixed precision."""
    if layer.kernel_quantizer is None:
        return value_of(layer.latent_kernel)
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    return codes * scale
