"""Files whose only operators are DECODE, for tests of encodings in the runtime."""

from collections.abc import Sequence

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.encodings.encoded import Encoded
from tfcompress.micro.operators import DECODE
from tfcompress.micro.runtime import MicroRuntime, sufficient_arena


def empty_model() -> schema.ModelT:
    """Returns a model without tensors and operators."""
    graph = schema.SubGraphT(
        tensors=[], operators=[], inputs=np.zeros(0, np.int32), outputs=None
    )
    return schema.ModelT(
        version=3, buffers=[schema.BufferT()], operatorCodes=[], subgraphs=[graph]
    )


def add_code(model: schema.ModelT, builtin: int, custom: str | None = None) -> int:
    """Adds the code of an operator to a model, and returns its index."""
    model.operatorCodes.append(
        schema.OperatorCodeT(
            deprecatedBuiltinCode=min(builtin, flatbuffer.PLACEHOLDER),
            builtinCode=builtin,
            customCode=custom,
            version=1,
        )
    )
    return len(model.operatorCodes) - 1


def decoding_file(
    encoded: Sequence[Encoded],
    shapes: Sequence[tuple[int, ...]],
    axes: Sequence[int | None],
) -> bytes:
    """Returns a file that decodes tensors, and returns them.

    Args:
        encoded: tensors to decode.
        shapes: their shapes.
        axes: the axis of their scales, or None for one scale.
    """
    model = empty_model()
    (graph,) = model.subgraphs
    code = add_code(model, schema.BuiltinOperator.CUSTOM, DECODE)
    targets = []
    for tensor, shape, axis in zip(encoded, shapes, axes, strict=True):
        sources = []
        for data in (tensor.data, tensor.ancillary):
            array = np.frombuffer(data, np.uint8)
            source = schema.TensorT(
                shape=np.array(array.shape, np.int32),
                type=schema.TensorType.UINT8,
                buffer=flatbuffer.append_buffer(model, array),
            )
            sources.append(flatbuffer.append_tensor(graph, source))
        scales = 1 if axis is None else shape[axis]
        target = schema.TensorT(
            shape=np.array(shape, np.int32),
            type=schema.TensorType.INT8,
            buffer=0,
            quantization=schema.QuantizationParametersT(
                scale=np.ones(scales, np.float32),
                zeroPoint=np.zeros(scales, np.int64),
                quantizedDimension=axis or 0,
            ),
        )
        targets.append(flatbuffer.append_tensor(graph, target))
        graph.operators.append(
            schema.OperatorT(
                opcodeIndex=code,
                inputs=np.array(sources, np.int32),
                outputs=np.array(targets[-1:], np.int32),
            )
        )
    graph.outputs = np.array(targets, np.int32)
    return flatbuffer.write(model)


def decoded_by_runtime(
    runtime: MicroRuntime,
    encoded: Sequence[Encoded],
    shapes: Sequence[tuple[int, ...]],
    axes: Sequence[int | None],
) -> list[np.ndarray]:
    """Decodes tensors in the runtime.

    Args:
        runtime: a `MicroRuntime`.
        encoded, shapes, axes: as `decoding_file` takes them.
    """
    content = decoding_file(encoded, shapes, axes)
    targets = flatbuffer.read(content).subgraphs[0].outputs.tolist()
    received = runtime("tensors", content, sufficient_arena(content), targets)
    return [x.reshape(shape) for x, shape in zip(received, shapes, strict=True)]
