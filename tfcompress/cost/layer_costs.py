"""Costs of every layer of a model: operations, parameters and bytes."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
from keras import ops

from tfcompress.cost import arithmetic
from tfcompress.cost.formulas import (
    has_formula,
    kernel_names,
    leaves_products_out,
)
from tfcompress.cost.input_shape import InputShape, sized_graph
from tfcompress.cost.layer_macs import NO_FORMULA, macs_of, samples_of
from tfcompress.graph.graph import Call
from tfcompress.graph.levels.stored_tensors import levels_of_tensors
from tfcompress.graph.parts.replacement import replace_by_parts
from tfcompress.graph.parts.subclassed_model import with_graph
from tfcompress.layers import (
    FactorizedKernel,
    IntegerAdd,
    PackedKernel,
    QuantizeActivation,
    QuantizedKernel,
    QuantizedTensor,
    RoundMeans,
)
from tfcompress.layers.kernel import channel_axis, other_weights
from tfcompress.layers.registry import forms_of
from tfcompress.quantizers import ActivationQuantizer
from tfcompress.quantizers.packing import container_bits, packed_bytes

_SCALE_BYTES = 4
# Layers that a file has no tensors for. Their steps are those of stored tensors.
_ROUNDING = (IntegerAdd, QuantizeActivation, QuantizedTensor, RoundMeans)


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer. Attributes are None where a quantity does not apply.

    Attributes:
        name: str. Name of the layer; inside nested models "outer/inner".
        type: str. Name of the class.
        kernel_shape: tuple of ints. Axes of the kernel as Keras stores them.
        channels: int. Number of output channels.
        rank: int. Rank of a factorized layer.
        weight_bits: int. Bits of a weight as quantized; 32 for float32.
        container_bits: int. Bits of a weight in a file: 2, 4, 8 or those of its float
            type.
        activation_bits: int. Bits of the input as quantized; 32 for float.
        sparsity: float. Share of zeros in the kernel.
        weights: int. Number of values in the kernels, zeros included.
        params: int. Number of weights, biases and other parameters, zeros included,
            scales not.
        macs: int. Multiply-accumulates per example, of all calls; None if they are not
            counted.
        bops: int. `macs * weight_bits * activation_bits`.
        bytes: int. Bytes of codes in their container, of 4-byte scales, and of other
            values in their own type.
        entropy_bytes: int. `bytes` with codes at their entropy bound.
        value_bits: int. Bits of the kernel's non-zero values.
        not_counted: str. Reason why `macs` is None, or "".
        open_size: bool. Whether that is because the model leaves the size of an output
            open.
    """

    name: str
    type: str
    kernel_shape: tuple[int, ...] | None
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
    open_size: bool = False


@dataclass(frozen=True)
class ModelCost:
    """Sums over the layers of a model, see `LayerCost`.

    Attributes:
        weights, params, bytes, entropy_bytes, value_bits: int. Sums over all layers.
        macs, bops: int; None if the size of a layer's output is open.
        not_counted: tuple of `LayerCost`. Layers that `macs` and `bops` leave out.
    """

    weights: int
    params: int
    macs: int | None
    bops: int | None
    bytes: int
    entropy_bytes: int
    value_bits: int
    not_counted: tuple[LayerCost, ...]


def layer_costs(
    model: keras.Model, input_shape: InputShape | None = None
) -> list[LayerCost]:
    """Returns the cost of every layer that has weights or multiplies.

    Convolutions (also transposed and depthwise ones), Dense, EinsumDense and recurrent
    layers are counted. So are embeddings, whose look-ups take no operations. A layer
    that `compress` replaces by its parts has a row for each part. BatchNormalization
    and other elementwise layers have parameters but no operations. Layers with neither
    (additions, pooling, activations) are left out. Layers that multiply but have no
    formula here give the reason in `not_counted`. The cost of a packed layer includes
    the `QuantizeActivation` before it.

    Args:
        model: built model: plain, of any kind that `tfcompress.compress` takes, a
            student with `Quant*` layers, or finalized with `Packed*` layers.
        input_shape: tuple of ints without the batch axis, such as (224, 224, 3). Size
            at which a model of free input sizes is counted. For several inputs a list
            of these in the order of the inputs, or a dict by their names. None is the
            `input_shape` of a student's scheme, if it has one.

    Returns:
        `LayerCost`s in the order of the layers' first calls. A shared layer appears
        once, with the operations of all its calls.

    Raises:
        ValueError: if the model is not built, is subclassed and cannot be traced, or
            does not take inputs of `input_shape`.
    """
    calls_of: dict[int, list[Call]] = {}
    if input_shape is None:
        input_shape = getattr(getattr(model, "scheme", None), "input_shape", None)
    graph = sized_graph(_opened(with_graph(model)), input_shape)
    samples = samples_of(graph)
    for call in graph.calls:
        calls_of.setdefault(id(call.operation), []).append(call)
    quantized_by = levels_of_tensors(graph)
    costs = (_layer_cost(calls, quantized_by, samples) for calls in calls_of.values())
    return [cost for cost in costs if cost is not None]


def total_cost(costs: Sequence[LayerCost]) -> ModelCost:
    """Returns the sums over `layer_costs(model)`."""
    is_open = any(cost.open_size for cost in costs)
    return ModelCost(
        weights=sum(cost.weights for cost in costs),
        params=sum(cost.params for cost in costs),
        macs=None if is_open else sum(cost.macs or 0 for cost in costs),
        bops=None if is_open else sum(cost.bops or 0 for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        entropy_bytes=sum(cost.entropy_bytes for cost in costs),
        value_bits=sum(cost.value_bits for cost in costs),
        not_counted=tuple(cost for cost in costs if cost.not_counted),
    )


def float32_cost(cost: ModelCost) -> ModelCost:
    """Returns the cost of the same layers in float32, without zeros."""
    return replace(
        cost,
        bops=None if cost.macs is None else arithmetic.bops(cost.macs),
        bytes=4 * cost.params,
        entropy_bytes=4 * cost.params,
        value_bits=arithmetic.value_bits(cost.weights, arithmetic.FLOAT_BITS),
    )


def _opened(model):
    """The model with the parts of its layers, which have formulas."""
    try:
        return replace_by_parts(model).model
    except ValueError:
        return model  # without a graph, or with a layer that cannot be copied


def _layer_cost(calls, quantized_by, samples):
    operation = calls[0].operation
    if isinstance(operation, _ROUNDING):
        return None
    names = kernel_names(operation)
    if names:
        return _counted(calls, names, quantized_by, samples)
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
        not_counted=NO_FORMULA if left_out else "",
    )


def _counted(calls, names, quantized_by, samples):
    layer = calls[0].operation
    stored = _stored_kernel(layer, names)
    macs, why = macs_of(calls, stored.shapes, samples)
    # A student's layer quantizes its input itself.
    quantizer = getattr(layer, "input_quantizer", None)
    if quantizer is None:
        quantizer = quantized_by.get(id(calls[0].inputs[0]))
        quantizer = getattr(quantizer, "quantizer", quantizer)
    activation_bits = getattr(quantizer, "bits", arithmetic.FLOAT_BITS)
    scaled = isinstance(quantizer, (ActivationQuantizer, QuantizeActivation))
    others = _others(layer, names)
    other_bytes = stored.scale_bytes + _SCALE_BYTES * scaled + sum(map(_nbytes, others))
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
        params=stored.size + sum(math.prod(x.shape) for x in others),
        macs=macs,
        bops=macs and arithmetic.bops(macs, stored.bits, activation_bits),
        bytes=packed_bytes(stored.size, stored.container_bits) + other_bytes,
        entropy_bytes=math.ceil(stored.entropy_bits / 8) + other_bytes,
        value_bits=arithmetic.value_bits(stored.nonzeros, stored.index_bits),
        not_counted=why,
        open_size=bool(why) and has_formula(layer),
    )


def _others(layer, names):
    """The weights of a counted layer that are no kernels."""
    if isinstance(layer, FactorizedKernel) or forms_of(layer) is None:
        owner = layer.cell if names[0].startswith("cell.") else layer
        bias = getattr(owner, "bias", None)
        return [] if bias is None else [bias]
    return other_weights(layer)


@dataclass(frozen=True)
class _StoredKernel:
    shapes: list[tuple[int, ...]]
    size: int
    nonzeros: int
    bits: int
    index_bits: int
    container_bits: int
    scale_bytes: int
    entropy_bits: float


def _stored_kernel(layer, names):
    """Returns the storage of a layer's kernel: its present one, or after `finalize`."""
    if isinstance(layer, PackedKernel):
        scales = math.prod(layer.kernel_scale.shape)
        return _stored_codes(layer.codes, scales, layer.kernel_bits)
    if isinstance(layer, QuantizedKernel):
        kernels = [layer.latent_kernel]
        if layer.kernel_quantizer is not None:
            codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
            return _stored_codes(codes, scale.size, layer.kernel_quantizer.bits)
    elif isinstance(layer, FactorizedKernel) and layer.int8:
        codes, scale = layer.kernel_quantizer.encode(layer.kernel)
        return _stored_codes(codes, scale.size, layer.kernel_quantizer.bits)
    else:
        kernels = [operator.attrgetter(name)(layer) for name in names]
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
    """Returns the size of the output's channel axis; None for an output without one."""
    return output_shape[channel_axis(operation)] if len(output_shape) > 1 else None


def _nbytes(weight):
    return math.prod(weight.shape) * _itemsize(weight)


def _itemsize(weight):
    """Returns bytes of a value by its type's name: float32, bfloat16, uint8, bool."""
    name = keras.backend.standardize_dtype(weight.dtype).partition("_")[0]
    bits = "".join(filter(str.isdigit, name))
    return int(bits or 8) // 8
