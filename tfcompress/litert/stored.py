"""Packed kernels read back from a `.tflite`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import (
    DATA_AND_BIAS,
    NATIVE_BITS,
    Kernel,
    Match,
    match,
)
from tfcompress.litert.look_up import tables
from tfcompress.progress_bar import progress_bar
from tfcompress.quantizers.packing import pack, packed_bytes, unpack


@dataclass(frozen=True)
class KernelTensor:
    """Constant integer tensor that a kernel's operator reads, directly or decoded.

    Attributes:
        name: str. Name in the file.
        type: "INT2", "INT4" or "INT8".
        bits: int. Bits of a code: 2, 4 or 8.
        shape: tuple of ints.
        packed: uint8 array. Packed codes.
        scale: float32 array, (output channels,).
        axis: int. Axis of output channels.
        native: bool. Whether a convolution or fully connected operator reads it without
            DEQUANTIZE.
        looked_up: bool. Whether rows of it are read, and multiplied by their scales.
    """

    name: str
    type: str
    bits: int
    shape: tuple[int, ...]
    packed: np.ndarray
    scale: np.ndarray
    axis: int
    native: bool = False
    looked_up: bool = False

    def codes(self) -> np.ndarray:
        """Returns the integer codes, an int8 array of the tensor's shape."""
        size = int(np.prod(self.shape))
        return unpack(self.packed, self.bits, size).reshape(self.shape)

    def decoded(self, codes: np.ndarray) -> np.ndarray:
        """Returns the float32 values of its codes, as DEQUANTIZE computes them."""
        lengths = [-1 if i == self.axis else 1 for i, _ in enumerate(self.shape)]
        return codes * self.scale.reshape(lengths)


def kernel_tensors(content: bytes) -> list[KernelTensor]:
    """Reads the constant integer tensors that are kernels, or decoded to kernels.

    Args:
        content: bytes of a `.tflite`.

    Returns:
        List of `KernelTensor`.

    Raises:
        ValueError: if such a tensor is not well-formed, or an operator reads codes of
            2 or 4 bits that are not among its `NATIVE_BITS`: this runtime's
            convolutions then return NaN without an error.
    """
    model = flatbuffer.read(content)
    found = {}
    for graph in model.subgraphs:
        for table in tables(model, graph):
            tensor = graph.tensors[table.codes]
            found[id(tensor)] = _looked_up(model, tensor, table)
        for operator in graph.operators:
            reader = flatbuffer.operator_name(model, operator)
            for place, index in enumerate(operator.inputs):
                if index < 0:  # an optional input that is left out
                    continue
                tensor = graph.tensors[index]
                bits = flatbuffer.TENSOR_BITS.get(tensor.type)
                decoded = reader == "DEQUANTIZE"
                readable = NATIVE_BITS.get(reader, (8,) * (reader in DATA_AND_BIAS))
                native = place == 1 and bits in readable
                if id(tensor) in found or reader == "CAST":  # of rows of a table
                    continue
                if bits in (2, 4) and not (decoded or native):
                    raise ValueError(
                        "Codes of 2 or 4 bits should be read by DEQUANTIZE, or by an "
                        f"operator that can: {NATIVE_BITS}. Received: {reader}, which "
                        f"reads '{flatbuffer.tensor_name(tensor)}' of type "
                        f"{flatbuffer.TYPE_NAMES[tensor.type]}."
                    )
                is_constant = flatbuffer.constant(model, tensor) is not None
                if bits and is_constant and (native or decoded):
                    found[id(tensor)] = _kernel_tensor(model, tensor, native)
    return list(found.values())


def _looked_up(model, tensor, table):
    name = flatbuffer.tensor_name(tensor)
    packed = flatbuffer.constant(model, tensor)
    if not (np.isfinite(table.scale).all() and (table.scale > 0).all()) or (
        len(packed) != packed_bytes(math.prod(table.shape), table.bits)
    ):
        raise ValueError(
            f"'{name}', a table of shape {table.shape}, should have its codes in full, "
            f"and a positive scale per row. Received: {len(packed)} bytes of codes, "
            f"scales {table.scale}."
        )
    return KernelTensor(
        name,
        f"INT{table.bits}",
        table.bits,
        table.shape,
        packed,
        table.scale,
        axis=0,
        looked_up=True,
    )


def _kernel_tensor(model, tensor, native):
    name = flatbuffer.tensor_name(tensor)
    type_name = flatbuffer.TYPE_NAMES[tensor.type]
    bits = flatbuffer.TENSOR_BITS[tensor.type]
    packed = flatbuffer.constant(model, tensor)
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None:
        raise ValueError(
            f"Codes should have a scale. Received: '{name}', {type_name}, without any."
        )
    axis, scale = quantization.quantizedDimension, quantization.scale
    shape = tuple(int(size) for size in tensor.shape)
    if (
        not 0 <= axis < len(shape)
        or len(scale) != shape[axis]
        or not (np.isfinite(scale).all() and (scale > 0).all())
        or np.any(quantization.zeroPoint)
        or len(packed) != packed_bytes(int(np.prod(shape)), bits)
    ):
        raise ValueError(
            f"'{name}', {type_name} of shape {shape}, should have its codes in full, a "
            "positive scale per output channel and zero points of 0. Received: "
            f"{len(packed)} bytes of codes, scales {scale} on axis {axis}, zero points "
            f"{quantization.zeroPoint}."
        )
    return KernelTensor(name, type_name, bits, shape, packed, scale, axis, native)


def check_written(tensors: Iterable[KernelTensor], matches: Iterable[Match]) -> None:
    """Checks that the file holds exactly the planned tensors, bit for bit.

    Args:
        tensors: tensors of the file.
        matches: plan, as `pack_kernels` returns it.

    Raises:
        ValueError: if a tensor is missing, not planned, or differs in type,
            shape, codes or scale.
    """
    written = sorted(
        (t.name, t.bits, t.shape, t.axis, t.packed.tobytes(), t.scale.tobytes())
        for t in tensors
    )
    planned = sorted(
        (
            m.kernel.layer,
            m.kernel.bits,
            m.codes.shape,
            m.axis,
            pack(m.codes, m.kernel.bits).tobytes(),
            m.scale.tobytes(),
        )
        for m in matches
    )
    if written != planned:
        wrong = {entry[0] for entry in set(written) ^ set(planned)}
        raise ValueError(
            "The file should hold each kernel with its planned type, codes and scales. "
            f"Received: something else for {sorted(wrong)}."
        )


def recognize(
    tensors: Sequence[KernelTensor], kernels: Sequence[Kernel]
) -> list[dict[str, Any]]:
    """Finds the kernels of a model among the tensors of a file.

    Scales are not compared: the converter may have folded a factor into them.

    Args:
        tensors: tensors of the file.
        kernels: kernels of the model.

    Returns:
        List of {"layer", "tensor", "type", "container_bits", "shape", "bytes"},
        one or more for each kernel. Kernels with equal codes may share a tensor.

    Raises:
        ValueError: if a kernel is not there.
    """
    named: dict[str, list[KernelTensor]] = {}
    for tensor in tensors:
        named.setdefault(tensor.name, []).append(tensor)
    with progress_bar("Comparison of kernels", len(kernels)) as bar:
        found = [
            _tensors_of(kernel, named.get(kernel.layer, ()), tensors)
            for kernel in bar.over(kernels)
        ]
    return [
        {
            "layer": kernel.layer,
            "tensor": tensor.name,
            "type": tensor.type,
            "container_bits": tensor.bits,
            "shape": list(tensor.shape),
            "bytes": len(tensor.packed),
        }
        for kernel, holding in zip(kernels, found, strict=True)
        for tensor in holding
    ]


def _tensors_of(kernel, named, tensors):
    """The tensors with the codes of a kernel: those of its name, or one other."""
    holding = [tensor for tensor in named if _holds(tensor, kernel)]
    if holding:
        return holding
    for tensor in tensors:
        if _holds(tensor, kernel):
            return [tensor]
    raise ValueError(
        f"The file should hold the kernel of layer '{kernel.layer}', "
        f"{kernel.codes.size} codes of at most {kernel.bits} bits. Received: "
        "the integer tensors "
        f"{[f'{t.name} {t.type} {t.shape}' for t in tensors]}, none of which "
        "has these codes. The file is damaged, or of another model."
    )


def _holds(tensor: KernelTensor, kernel: Kernel) -> bool:
    if math.prod(tensor.shape) != kernel.codes.size:  # before anything is unpacked
        return False
    # Files for speed have INT8 kernels that are decoded when they are loaded.
    if kernel.bits < tensor.bits < 8 and not (tensor.native or tensor.looked_up):
        return False
    codes = tensor.codes()
    found = match(tensor.decoded(codes), kernel)
    return found is not None and np.array_equal(found.codes, codes)
