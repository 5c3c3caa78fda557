"""Reading and writing the `.tflite` flatbuffer."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
# `Buffer.data` has `force_align: 16` in the schema; Python's generated code does
# not know it.
ALIGNMENT = 16

TENSOR_TYPES = {
    2: schema.TensorType.INT2,
    4: schema.TensorType.INT4,
    8: schema.TensorType.INT8,
}
TENSOR_BITS = {value: bits for bits, value in TENSOR_TYPES.items()}
TYPE_NAMES = {value: f"INT{bits}" for value, bits in TENSOR_BITS.items()}
OPERATOR_NAMES = {
    value: name
    for name, value in vars(schema.BuiltinOperator).items()
    if isinstance(value, int)
}


def read(content):
    """Parses bytes that a runtime has verified into a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def write(model):
    """Serialises a `schema.ModelT` to bytes."""
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors and strings once; tables may point to the same one.

    It matters for `zero_point`: 8 bytes per channel, which this runtime wants to
    be as long as `scale`, and all zero for every kernel.
    """

    def __init__(self, size):
        super().__init__(size)
        self._written = {}

    def CreateString(self, s, *args):
        return self._once(("string", s), super().CreateString, s, *args)

    def CreateNumpyVector(self, x):
        if x.dtype == np.uint8:
            self.Prep(ALIGNMENT, x.size)
        return self._once((x.dtype.str, x.tobytes()), super().CreateNumpyVector, x)

    def _once(self, key, create, *args):
        if key not in self._written:
            self._written[key] = create(*args)
        return self._written[key]


def operator_name(model, operator):
    """Such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    return OPERATOR_NAMES.get(code, "CUSTOM")


def constant(model, tensor):
    """A constant tensor's raw bytes as a uint8 array; None if it is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None else np.asarray(data, np.uint8)


def strip(model):
    """Drops what the runtime does not read, and all buffers without a reader.

    Names of constants and intermediate results go; those of inputs, outputs and
    integer kernels stay.
    """
    model.description = model.metadata = model.metadataBuffer = None
    for graph in model.subgraphs:
        named = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
            if index not in named and tensor.quantization is None:
                tensor.name = None
    _drop_unread_buffers(model)


def _drop_unread_buffers(model):
    # By convention, buffer 0 is empty and serves all tensors that are computed.
    buffers, positions = [schema.BufferT()], {None: 0}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = constant(model, tensor)
            key = None if data is None else data.tobytes()
            if key not in positions:
                positions[key] = len(buffers)
                buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = positions[key]
    model.buffers = buffers
