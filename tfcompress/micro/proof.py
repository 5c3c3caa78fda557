"""Proof that an encoded file computes what the int8 file computes."""

from typing import Any

import keras
import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import DATA_AND_BIAS
from tfcompress.litert.proof.check import compare
from tfcompress.litert.proof.samples import Samples
from tfcompress.micro.kernels import stored_kernels
from tfcompress.micro.operators import DECODE, operator_name
from tfcompress.micro.runtime import MicroRunner, MicroRuntime, sufficient_arena


def prove(
    runtime: MicroRuntime,
    plain: bytes,
    content: bytes,
    model: keras.Model,
    samples: Samples,
) -> dict[str, Any]:
    """Compares the kernels and the outputs of two files, and these with Keras's.

    Args:
        runtime: a `MicroRuntime`. The files are loaded as "int8" and "encoded".
        plain: the int8 file.
        content: the encoded file.
        model: the Functional model.
        samples: `Samples` to run.

    Returns:
        Dict of "agreement" and "verified_on", as in the result of `litert.check`.

    Raises:
        ValueError: if a kernel or an output differs in a bit, or the outputs are not
            close to Keras's.
    """
    check_kernels(runtime, plain, content)
    expected = MicroRunner(runtime, plain, "int8")
    encoded = MicroRunner(runtime, content, "encoded")

    def run(batch):
        expected(batch)
        outputs = encoded(batch)
        for a, b in zip(expected.codes, encoded.codes, strict=True):
            if not np.array_equal(a, b):
                raise ValueError(
                    "The encoded file should have the int8 file's outputs to the bit. "
                    f"Received: {(a != b).sum()} other values of {a.size}. Report this "
                    "model as a bug."
                )
        return outputs

    return compare(
        content, model, samples, exact=False, run=run, runtime="TensorFlow Lite Micro"
    )


def check_kernels(runtime: MicroRuntime, plain: bytes, content: bytes) -> None:
    """Checks that a file's kernels are those of the int8 file, as the runtime has them.

    Raises:
        ValueError: if a kernel differs.
    """
    model = flatbuffer.read(content)
    indices = [
        int(operator.outputs[0])
        for operator in model.subgraphs[0].operators
        if operator_name(model, operator) == DECODE
    ]
    received = runtime("tensors", content, sufficient_arena(content), indices)
    parts = list(_parts(model, dict(zip(indices, received, strict=True))))
    kernels = stored_kernels(flatbuffer.read(plain))
    readers = {place: kernel for kernel in kernels for place in kernel.operators}
    for _, kernel in sorted(readers.items()):
        joined: list[np.ndarray] = []
        while sum(part.size for part in joined) < kernel.codes.size:
            joined.append(parts.pop(0))
        if not np.array_equal(np.concatenate(joined), kernel.codes):
            raise ValueError(
                f"The runtime should decode the kernel '{kernel.name}' to its codes. "
                "Received: others. Report this model as a bug."
            )


def _parts(model, decoded):
    """Yields the codes that each reader reads, in order."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if operator_name(model, operator) in DATA_AND_BIAS:
            tensor = graph.tensors[operator.inputs[1]]
            data = flatbuffer.constant(model, tensor)
            if int(operator.inputs[1]) in decoded:
                yield decoded[int(operator.inputs[1])].reshape(tensor.shape)
            elif data is not None and tensor.type == schema.TensorType.INT8:
                yield data.view(np.int8).reshape(tensor.shape)
