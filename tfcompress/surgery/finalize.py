"""From a trained student to a model of packed integer layers."""

import warnings

import numpy as np
from keras import ops

from tfcompress import layers
from tfcompress.layers.packed import inference_config
from tfcompress.surgery import batch_norm
from tfcompress.surgery.checks import check_finite
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.rebuild import clone_layer, copy_weights, rebuild

PACKED = {
    layers.QuantConv1D: layers.PackedConv1D,
    layers.QuantConv2D: layers.PackedConv2D,
    layers.QuantDense: layers.PackedDense,
    layers.QuantDepthwiseConv2D: layers.PackedDepthwiseConv2D,
}


def finalize(student):
    """Fixes what was trained: integer codes in packed layers, BN folded.

    Every `Quant*` layer becomes its `Packed*` counterpart with the codes and
    scales that the student computes with, and takes up the BatchNormalization
    behind it where nothing else reads the layer's output. All other layers are
    copied. Everything computes in float32, also if the student was trained in
    mixed precision.

    Args:
        student: a model from `tfcompress.compress`, or any Functional or
            Sequential model with `tfcompress.layers.Quant*` layers. It is left
            untouched.

    Returns:
        A Functional `keras.Model` that predicts as the student does in
        inference and needs no scheme to be loaded.

    Raises:
        ValueError: if the model has no graph, no `Quant*` layer, or weights
            that are not finite.
    """
    graph = Graph(student)
    quantized = {
        name: layer
        for name, layer in graph.layers().items()
        if isinstance(layer, layers.QuantizedKernel)
    }
    _check(student, quantized)
    norms = {
        id(layer): batch_norm.foldable(graph, layer) for layer in quantized.values()
    }
    folded = {id(norm) for norm in norms.values() if norm is not None}

    def replace(layer):
        if id(layer) in folded:
            return None
        if isinstance(layer, layers.QuantizedKernel):
            return _packed(layer, norms[id(layer)])
        if layer.compute_dtype in ("float16", "bfloat16"):
            return clone_layer(layer, dtype="float32")
        return clone_layer(layer)

    tiny, pairs = rebuild(student, replace)
    for old, new in pairs:
        if isinstance(new, layers.PackedKernel):
            _copy_codes(old, new, norms[id(old)])
        else:
            copy_weights(old, new)
    return tiny


def _check(student, quantized):
    if not quantized:
        raise ValueError(
            "A model with quantized layers is expected, as `tfcompress.compress` "
            f"makes it. Received: '{student.name}', which has none. Compress and "
            "train it first."
        )
    check_finite(student, "Its training diverged: lower the learning rate.")
    for name, layer in quantized.items():
        if layer.kernel_quantizer is None or layer.input_quantizer is not None:
            raise ValueError(
                f"Layer '{name}' cannot be packed: a packed layer has a quantized "
                "kernel and a float input. Received: kernel_quantizer="
                f"{layer.kernel_quantizer}, input_quantizer={layer.input_quantizer}."
            )
        message = layer.kernel_quantizer.unfinished()
        if message:
            warnings.warn(f"Layer '{name}': {message}", stacklevel=3)


def _packed(layer, norm):
    config = inference_config(layer.get_config())
    del config["kernel_quantizer"], config["input_quantizer"]
    config["dtype"] = "float32"
    config["use_bias"] = layer.use_bias or norm is not None
    config["kernel_bits"] = layer.kernel_quantizer.bits
    return PACKED[type(layer)].from_config(config)


def _copy_codes(old, new, norm):
    codes, scale = old.kernel_quantizer.encode(old._kernel)
    bias = ops.convert_to_numpy(old.bias) if old.use_bias else None
    if norm is not None:
        codes, scale, bias = batch_norm.fold(
            codes, scale, np.float64(0) if bias is None else bias, norm
        )
    new.set_kernel(codes, scale)
    if bias is not None:
        new.bias.assign(bias)
