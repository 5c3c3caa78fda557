"""From a trained student to a model of packed integer layers."""

import warnings

import numpy as np
from keras import ops

from tfcompress import layers
from tfcompress.core.checks import check_finite
from tfcompress.graph import batch_norm
from tfcompress.graph.graph import Graph
from tfcompress.graph.merge import merge
from tfcompress.graph.rebuild import clone_layer, copy_weights, rebuild
from tfcompress.graph.remove import remove_channels
from tfcompress.layers.packed import inference_config
from tfcompress.quantizers import ActivationQuantizer

PACKED = {
    layers.QuantConv1D: layers.PackedConv1D,
    layers.QuantConv2D: layers.PackedConv2D,
    layers.QuantDense: layers.PackedDense,
    layers.QuantDepthwiseConv2D: layers.PackedDepthwiseConv2D,
}

# They serve the search for bits and filters, and pass their input on.
SEARCH_LAYERS = (layers.BopsBudget, layers.FilterGate)

DIVERGED = "Its training diverged: lower the learning rate."


def finalize(student):
    """Fixes what was trained: integer codes, BN folded; or fewer channels and ranks.

    A student with `Factorized*` layers becomes a plain model: see
    `tfcompress.graph.merge`. In any other, every `Quant*` layer becomes its
    `Packed*` counterpart with the codes and scales that the student computes with,
    and takes up the BatchNormalization behind it where nothing else reads the layer's
    output. A quantized input becomes a `QuantizeActivation` in front, with the layer's
    name and "_input". Filters behind closed gates are removed, with all that reads
    them. All other layers are copied. Everything computes in float32, also if the
    student was trained in mixed precision.

    Args:
        student: a model from `tfcompress.compress`, or any Functional or
            Sequential model with `tfcompress.layers.Quant*` or `Factorized*` layers.
            It is left untouched.

    Returns:
        A Functional `keras.Model` that predicts as the student does in
        inference and needs no scheme to be loaded.

    Raises:
        ValueError: if the model has no graph, nothing to finalize, weights that are
            not finite, or a `Quant*` layer with a float kernel or an
            `input_quantizer` that is no `ActivationQuantizer`.
    """
    graph = Graph(student)
    if any(isinstance(x, layers.FactorizedKernel) for x in graph.layers().values()):
        check_finite(student, DIVERGED)
        _warn_of_unfinished(graph)
        return merge(student)
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

    inputs = {
        id(layer): _quantized_input(layer, graph)
        for layer in quantized.values()
        if layer.input_quantizer is not None
    }

    def replace(layer):
        if id(layer) in folded or isinstance(layer, SEARCH_LAYERS):
            return None
        if isinstance(layer, layers.QuantizedKernel):
            packed = _packed(layer, norms[id(layer)])
            return [inputs[id(layer)], packed] if id(layer) in inputs else packed
        if layer.compute_dtype in ("float16", "bfloat16"):
            return clone_layer(layer, dtype="float32")
        return clone_layer(layer)

    tiny, pairs = rebuild(student, replace)
    for old, new in pairs:
        if isinstance(new, layers.PackedKernel):
            _copy_codes(old, new, norms[id(old)])
            if id(old) in inputs:
                inputs[id(old)].set_scale(old.input_quantizer.scale_value())
        else:
            copy_weights(old, new)
    return remove_channels(tiny, _kept_channels(graph))


def _kept_channels(graph):
    """`{layer name: open channels}` of the layers with closed filter gates."""
    gates = [x for x in graph.layers().values() if isinstance(x, layers.FilterGate)]
    kept = {gate.source: gate.open_channels() for gate in gates}
    return {
        gate.source: kept[gate.source]
        for gate in gates
        if len(kept[gate.source]) < gate.filters
    }


def _warn_of_unfinished(graph):
    for name, layer in graph.layers().items():
        if isinstance(layer, layers.FactorizedKernel) and layer.unfinished():
            warnings.warn(f"Layer '{name}': {layer.unfinished()}", stacklevel=3)


def _check(student, quantized):
    if not quantized:
        raise ValueError(
            "A model with quantized layers is expected, as `tfcompress.compress` "
            f"makes it. Received: '{student.name}', which has none. Compress and "
            "train it first."
        )
    check_finite(student, DIVERGED)
    for name, layer in quantized.items():
        if layer.kernel_quantizer is None or not isinstance(
            layer.input_quantizer, (ActivationQuantizer, type(None))
        ):
            raise ValueError(
                f"Layer '{name}' cannot be packed: a packed layer has a quantized "
                "kernel, and a float input or one of an ActivationQuantizer. Received: "
                f"kernel_quantizer={layer.kernel_quantizer}, "
                f"input_quantizer={layer.input_quantizer}."
            )
        for quantizer in (layer.kernel_quantizer, layer.input_quantizer):
            message = quantizer and quantizer.unfinished()
            if message:
                warnings.warn(f"Layer '{name}': {message}", stacklevel=3)


def _quantized_input(layer, graph):
    name = f"{layer.name}_input"
    # Sequential models of Keras 2 call their own inputs like that.
    if any(name == tensor.name for call in graph.calls for tensor in call.inputs):
        name += "_levels"
    quantizer = layer.input_quantizer
    return layers.QuantizeActivation(quantizer.bits, quantizer.signed, name=name)


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
