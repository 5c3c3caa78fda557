"""Reader and writer of the `.tflite` flatbuffer."""

import numpy as np

from tfcompress.compat.litert_private import SharingBuilder, schema
from tfcompress.litert.proof.structure import read_structure
from tfcompress.litert.runtime import IDENTIFIER

# Value of the old one-byte field of an operator's code where the code needs more.
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


def read(content: bytes) -> schema.ModelT:
    """Parses the bytes of any file, see `read_structure`.

    Some tools append large buffers after the flatbuffer. Their data is moved into it.

    Raises:
        ValueError: if it is no `.tflite` file, or a damaged one.
    """
    return read_structure(content)


def write(model: schema.ModelT) -> bytes:
    """Serializes a model; equal vectors and strings are written once."""
    model.signatureDefs = model.signatureDefs or None  # an empty vector takes bytes
    builder = SharingBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Returns the name of an operator, such as "CONV_2D"; "CUSTOM" if not builtin."""
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    return OPERATOR_NAMES.get(code, "CUSTOM")


def tensor_name(tensor: schema.TensorT) -> str:
    """Returns the name of a tensor, or "" if it has none."""
    return (tensor.name or b"").decode(errors="replace")


def make_names_unique(model: schema.ModelT) -> None:
    """Numbers the names of tensors that have the name of an earlier one."""
    seen: set[bytes] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            name, number = tensor.name or b"", 1
            while tensor.name in seen:
                number += 1
                tensor.name = name + b"_%d" % number
            seen.add(tensor.name)


def operator(
    model: schema.ModelT, name: str, source: int, target: int, version: int = 1
) -> schema.OperatorT:
    """Creates an operator with one input and one output.

    Args:
        model: the operator's model. It gets the operator's code if it has none. The
            version in an existing code is raised to the operator's.
        name: builtin operator, such as "DEQUANTIZE".
        source: index of the input tensor.
        target: index of the output tensor.
        version: version of the operator.
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
    code = model.operatorCodes[codes.index(builtin)]
    code.version = max(code.version, version)
    return schema.OperatorT(
        opcodeIndex=codes.index(builtin),
        inputs=np.array([source], np.int32),
        outputs=np.array([target], np.int32),
    )


def computed_tensor(other: schema.TensorT, tensor_type: int) -> schema.TensorT:
    """Creates a computed tensor with the shape of another one.

    Args:
        other: tensor with the shape.
        tensor_type: member of `schema.TensorType`.
    """
    return schema.TensorT(
        shape=other.shape,
        shapeSignature=other.shapeSignature,
        hasRank=other.hasRank,
        type=tensor_type,
        buffer=0,
    )


def has_int8_codes(tensor: schema.TensorT) -> bool:
    """Returns whether a tensor is INT8 with a scale, and no integers of the user's."""
    found = tensor.quantization
    has_scale = found is not None and found.scale is not None
    return has_scale and tensor.type == schema.TensorType.INT8


def append_tensor(graph: schema.SubGraphT, tensor: schema.TensorT) -> int:
    """Appends a tensor to a graph and returns its index."""
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def append_buffer(model: schema.ModelT, data: np.ndarray) -> int:
    """Appends a buffer with uint8 data to a model and returns its index."""
    model.buffers.append(schema.BufferT(data=data))
    return len(model.buffers) - 1


def constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """Returns the bytes of a constant tensor, uint8; None if it is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None else np.asarray(data, np.uint8)


def strip(model: schema.ModelT) -> None:
    """Drops metadata that the runtime ignores, and unused tensors and buffers.

    Names of constants and of intermediate results go. Names of inputs, outputs and
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
    drop_unused_tensors(model)
    _drop_unused_buffers(model)


def drop_unused_tensors(model: schema.ModelT) -> None:
    """Drops tensors that no operator, output or signature names; others get indices."""
    for number, graph in enumerate(model.subgraphs):
        entries = [
            entry
            for signature in model.signatureDefs or []
            if signature.subgraphIndex == number
            for entry in [*(signature.inputs or []), *(signature.outputs or [])]
        ]
        used = _used_tensors(graph, entries)
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


def _used_tensors(graph, entries):
    """Sorted indices of the tensors that a graph or its signature's entries name."""
    lists = [graph.inputs, graph.outputs]
    for operator in graph.operators:
        lists += [operator.inputs, operator.outputs, operator.intermediates]
    used = {int(i) for indices in lists if indices is not None for i in indices}
    # -1 stands for an optional tensor that is left out.
    return sorted(used.union(entry.tensorIndex for entry in entries) - {-1})


def _drop_unused_buffers(model):
    # By convention, buffer 0 is empty and serves all computed tensors.
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
