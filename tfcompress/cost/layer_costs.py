"""What every layer of a model costs: operations, parameters, bytes."""

import math
from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import ops

from tfcompress.cost import arithmetic
from tfcompress.cost.formulas import (
    kernel_names,
    leaves_products_out,
    output_positions,
)
from tfcompress.graph.graph import Graph
from tfcompress.layers import PackedKernel, QuantizeActivation, QuantizedKernel
from tfcompress.layers.kernel import channel_axis
from tfcompress.quantizers import ActivationQuantizer
from tfcompress.quantizers.packing import container_bits, packed_bytes

_SCALE_BYTES = 4


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer. None where a quantity does not apply.

    Attributes:
        name: the layer's name; inside nested models "outer/inner".
        type: class name.
        kernel_shape: the kernel's axes as Keras stores them.
        channels: output channels.
        rank: rank of a factorised layer.
        weight_bits: bits of a weight as quantized; 32 for float32.
        container_bits: bits that it takes in a file: 2, 4, 8, or its float type's.
        activation_bits: bits of the input as quantized; 32 for float.
        sparsity: share of the kernel's weights that are zero.
        weights: values in the kernels, zeros included.
        params: the weights, the bias, and whatever else the layer has, zeros
            included; scales are not parameters.
        macs: multiply-accumulates per example, all calls together; None if they
            are not counted, see `not_counted`.
        bops: `macs * weight_bits * activation_bits`.
        bytes: codes in their container, 4-byte scales, and everything else at
            the size of its type.
        entropy_bytes: the same with the codes at their entropy bound.
        value_bits: bits of the kernel's non-zero values.
        not_counted: why `macs` is None, or "".
    """

    name: str
    type: str
    kernel_shape: tuple | None
    channels: int | None
    rank: int | None
    weight_bits: int | None
    container_bits: int | None
    activation_bits: int | None
    sparsity: float | None
    weights: int
    params: int
    macs: int | None
    bops: int | None
    bytes: int
    entropy_bytes: int
    value_bits: int
    not_counted: str = ""


@dataclass(frozen=True)
class ModelCost:
    """Sums over a model's layers; see `LayerCost`.

    Attributes:
        not_counted: the `LayerCost`s whose operations `macs` and `bops` leave out.
    """

    weights: int
    params: int
    macs: int
    bops: int
    bytes: int
    entropy_bytes: int
    value_bits: int
    not_counted: tuple


def layer_costs(model):
    """The costs of every layer that has weights or multiplies.

    Convolutions (transposed, depthwise and separable ones too), Dense and
    EinsumDense are counted. BatchNormalization and other elementwise layers cost
    parameters but no operations, and layers with neither (additions, pooling,
    activations) do not appear. What multiplies but has no formula here appears
    with `not_counted`. The `QuantizeActivation` in front of a packed layer is part
    of that layer's row.

    Args:
        model: a built Functional or Sequential model: plain, a student with
            `Quant*` layers, or a finalized one with `Packed*` layers.

    Returns:
        A list of `LayerCost` in the order of the layers' first calls. A shared
        layer appears once, with the operations of all its calls.

    Raises:
        ValueError: if the model is subclassed or not built.
    """
    calls_of = {}
    for call in Graph(model).calls:
        calls_of.setdefault(id(call.operation), []).append(call)
    levels = {
        id(call.outputs[0]): call.operation
        for calls in calls_of.values()
        for call in calls
        if isinstance(call.operation, QuantizeActivation)
    }
    # `levels` has the tensors that a QuantizeActivation returns, and the layer.
    costs = (_layer_cost(calls, levels) for calls in calls_of.values())
    return [cost for cost in costs if cost is not None]


def total_cost(costs):
    """Sums `layer_costs(model)` into a `ModelCost`."""
    return ModelCost(
        weights=sum(cost.weights for cost in costs),
        params=sum(cost.params for cost in costs),
        macs=sum(cost.macs or 0 for cost in costs),
        bops=sum(cost.bops or 0 for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        entropy_bytes=sum(cost.entropy_bytes for cost in costs),
        value_bits=sum(cost.value_bits for cost in costs),
        not_counted=tuple(cost for cost in costs if cost.not_counted),
    )


def float32_cost(cost):
    """What the same layers would cost in float32, without a zero: a `ModelCost`."""
    return replace(
        cost,
        bops=arithmetic.bops(cost.macs),
        bytes=4 * cost.params,
        entropy_bytes=4 * cost.params,
        value_bits=arithmetic.value_bits(cost.weights, arithmetic.FLOAT_BITS),
    )


def _layer_cost(calls, levels):
    operation = calls[0].operation
    if isinstance(operation, QuantizeActivation):
        return None
    names = kernel_names(operation)
    if names:
        return _counted(calls, names, levels)
    left_out = leaves_products_out(operation)
    weights = getattr(operation, "weights", ())
    if not left_out and not weights:
        return None
    size = sum(map(_nbytes, weights))
    return LayerCost(
        name=calls[0].name,
        type=type(operation).__name__,
        kernel_shape=None,
        channels=_channels(operation, calls[0].outputs[0].shape),
        rank=None,
        weight_bits=None,
        container_bits=None,
        activation_bits=None,
        sparsity=None,
        weights=0,
        params=sum(math.prod(weight.shape) for weight in weights),
        macs=None if left_out else 0,
        bops=None if left_out else 0,
        bytes=size,
        entropy_bytes=size,
        value_bits=0,
        not_counted="no formula for its operations" if left_out else "",
    )


def _counted(calls, names, levels):
    layer = calls[0].operation
    stored = _stored_kernel(layer, names)
    macs, why = _macs(calls, stored.shapes)
    # A student's layer quantizes its input itself.
    quantizer = getattr(layer, "input_quantizer", None)
    quantizer = quantizer or levels.get(id(calls[0].inputs[0]))
    activation_bits = getattr(quantizer, "bits", arithmetic.FLOAT_BITS)
    scaled = isinstance(quantizer, (ActivationQuantizer, QuantizeActivation))
    bias = getattr(layer, "bias", None)
    bias_size = 0 if bias is None else math.prod(bias.shape)
    other_bytes = stored.scale_bytes + _SCALE_BYTES * scaled
    other_bytes += 0 if bias is None else _nbytes(bias)
    return LayerCost(
        name=calls[0].name,
        type=type(layer).__name__,
        kernel_shape=stored.shapes[0] if len(stored.shapes) == 1 else None,
        channels=_channels(layer, calls[0].outputs[0].shape),
        rank=None,
        weight_bits=stored.bits,
        container_bits=stored.container_bits,
        activation_bits=activation_bits,
        sparsity=(stored.size - stored.nonzeros) / stored.size,
        weights=stored.size,
        params=stored.size + bias_size,
        macs=macs,
        bops=macs and arithmetic.bops(macs, stored.bits, activation_bits),
        bytes=packed_bytes(stored.size, stored.container_bits) + other_bytes,
        entropy_bytes=math.ceil(stored.entropy_bits / 8) + other_bytes,
        value_bits=arithmetic.value_bits(stored.nonzeros, stored.index_bits),
        not_counted=why,
    )


def _macs(calls, kernel_shapes):
    """`(macs, "")` over all calls, or `(None, the reason)`."""
    total = 0
    for call in calls:
        positions = output_positions(
            call.operation, call.inputs[0].shape, call.outputs[0].shape
        )
        if None in positions:
            return None, f"the model leaves its output size {positions} open"
        total += sum(
            arithmetic.kernel_macs(shape, positions) for shape in kernel_shapes
        )
    return total, ""


@dataclass(frozen=True)
class _StoredKernel:
    shapes: list
    size: int
    nonzeros: int
    bits: int
    index_bits: int
    container_bits: int
    scale_bytes: int
    entropy_bits: float


def _stored_kernel(layer, names):
    """How a layer's kernel is, or after `finalize` will be, stored."""
    if isinstance(layer, PackedKernel):
        scales = math.prod(layer.kernel_scale.shape)
        return _stored_codes(layer.codes, scales, layer.kernel_bits)
    if isinstance(layer, QuantizedKernel):
        kernels = [layer.latent_kernel]
        if layer.kernel_quantizer is not None:
            codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
            return _stored_codes(codes, scale.size, layer.kernel_quantizer.bits)
    else:
        kernels = [getattr(layer, name) for name in names]
    values = [ops.convert_to_numpy(kernel) for kernel in kernels]
    size = sum(value.size for value in values)
    bits = 8 * _itemsize(kernels[0])
    return _StoredKernel(
        shapes=[value.shape for value in values],
        size=size,
        nonzeros=sum(int(np.count_nonzero(value)) for value in values),
        bits=bits,
        index_bits=bits,
        container_bits=bits,
        scale_bytes=0,
        entropy_bits=size * bits,
    )


def _stored_codes(codes, scales, bits):
    return _StoredKernel(
        shapes=[codes.shape],
        size=codes.size,
        nonzeros=int(np.count_nonzero(codes)),
        bits=bits,
        index_bits=arithmetic.index_bits(codes),
        container_bits=container_bits(bits),
        scale_bytes=_SCALE_BYTES * scales,
        entropy_bits=arithmetic.entropy_bits(codes),
    )


def _channels(operation, output_shape):
    """Size of the output's channel axis; None for an output without one."""
    return output_shape[channel_axis(operation)] if len(output_shape) > 1 else None


def _nbytes(weight):
    return math.prod(weight.shape) * _itemsize(weight)


def _itemsize(weight):
    """Bytes of one value, from its type's name: float32, bfloat16, uint8, bool."""
    name = keras.backend.standardize_dtype(weight.dtype).partition("_")[0]
    bits = "".join(filter(str.isdigit, name))
    return int(bits or 8) // 8
