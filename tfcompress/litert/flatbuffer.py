"""Reading and writing the `.tflite` flatbuffer."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
# `Buffer.data` has `force_align: 16` in the schema; Python's generated code does
# not know it.
ALIGNMENT = 16

# In the place of codes that do not fit a byte.
PLACEHOLDER = 127

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
    """Parses bytes that a runtime has verified into a `schema.ModelT`.

    Buffers that lie behind the flatbuffer, as some tools write large ones, come inside.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 stand for none
            last = buffer.offset + buffer.size
            buffer.data = np.frombuffer(content[buffer.offset : last], np.uint8)
            buffer.offset = buffer.size = 0
    return model


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


def operator(model, name, source, target, version=1):
    """A new `schema.OperatorT` with one input and one output.

    Args:
        model: `schema.ModelT`, which gets the operator's code if it has none.
        name: such as "DEQUANTIZE".
        source, target: indices of tensors.
        version: of the operator.
    """
    builtin = getattr(schema.BuiltinOperator, name)
    codes = [code.builtinCode for code in model.operatorCodes]
    if builtin not in codes:
        model.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(builtin, PLACEHOLDER),
                builtinCode=builtin,
                version=version,
            )
        )
        codes.append(builtin)
    return schema.OperatorT(
        opcodeIndex=codes.index(builtin),
        inputs=np.array([source], np.int32),
        outputs=np.array([target], np.int32),
    )


def computed_tensor(other, tensor_type):
    """A new computed tensor of another one's shape."""
    return schema.TensorT(
        shape=other.shape,
        shapeSignature=other.shapeSignature,
        hasRank=other.hasRank,
        type=tensor_type,
        buffer=0,
    )


def append_tensor(graph, tensor):
    """The index of a tensor that is new in the graph."""
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def constant(model, tensor):
    """A constant tensor's raw bytes as a uint8 array; None if it is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None else np.asarray(data, np.uint8)


def strip(model):
    """Drops what the runtime does not read, and all tensors and buffers without a use.

    Names of constants and intermediate results go; those of inputs, outputs and
    integer kernels stay.
    """
    model.description = model.metadata = model.metadataBuffer = None
    for graph in model.subgraphs:
        named = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if tensor.quantization is not None and tensor.quantization.scale is None:
                tensor.quantization = None
            is_kernel = tensor.quantization and constant(model, tensor) is not None
            if index not in named and not is_kernel:
                tensor.name = None
    _drop_unused_tensors(model)
    _drop_unread_buffers(model)


def _drop_unused_tensors(model):
    for number, graph in enumerate(model.subgraphs):
        lists = [graph.inputs, graph.outputs]
        for operator in graph.operators:
            lists += [operator.inputs, operator.outputs, operator.intermediates]
        used = {int(i) for indices in lists if indices is not None for i in indices}
        entries = [
            entry
            for signature in model.signatureDefs or []
            if signature.subgraphIndex == number
            for entry in [*(signature.inputs or []), *(signature.outputs or [])]
        ]
        used = sorted(used.union(entry.tensorIndex for entry in entries) - {-1})
        new = {old: i for i, old in enumerate(used)} | {-1: -1}

        def renumbered(indices, new=new):
            if indices is None:
                return None
            return np.array([new[int(i)] for i in indices], np.int32)

        graph.tensors = [graph.tensors[i] for i in used]
        graph.inputs, graph.outputs = map(renumbered, (graph.inputs, graph.outputs))
        for operator in graph.operators:
            operator.inputs = renumbered(operator.inputs)
            operator.outputs = renumbered(operator.outputs)
            operator.intermediates = renumbered(operator.intermediates)
        for entry in entries:
            entry.tensorIndex = new[entry.tensorIndex]


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
