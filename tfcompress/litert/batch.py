"""Batch of a file that was converted for one sample."""

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import Runner

# Batches that a file with a free batch is tried with.
SIZES = (2, 5)
# Largest difference from the outputs of single samples, relative to the largest one.
TOLERANCE = 1e-4
# Size of a free axis in the samples that it is tried with.
FREE_SIZE = 8


def with_free_batch(content: bytes) -> bytes:
    """Frees the batch of a file, where it then computes the same for each sample.

    Inputs and outputs get a free first axis, and so do the results of RESHAPE. LiteRT
    infers all other shapes. Loops keep states for one sample, so that a file with
    control flow stays as it is.

    Args:
        content: bytes of a `.tflite` for a batch of one.

    Returns:
        The file with a free batch. It is `content` itself if LiteRT cannot run that
        with several samples, or has other outputs than for one after the other.
    """
    model = flatbuffer.read(content)
    if len(model.subgraphs) > 1:
        return content
    (graph,) = model.subgraphs
    for index in {*graph.inputs, *graph.outputs}:
        _free_first_axis(graph.tensors[index])
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) == "RESHAPE":
            _reshape_to_any_batch(model, graph, operator)
    freed = flatbuffer.write(model)
    return freed if _same_for_each_sample(content, freed) else content


def _free_first_axis(tensor):
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    if len(sizes):
        tensor.shapeSignature = np.array([-1, *sizes[1:]], np.int32)


def _reshape_to_any_batch(model, graph, operator):
    """Replaces a constant new shape (1, ...) by (-1, ...)."""
    if len(operator.inputs) < 2:
        return
    tensor = graph.tensors[operator.inputs[1]]
    data = flatbuffer.constant(model, tensor)
    sizes = [] if data is None else data.view(np.int32).tolist()
    if sizes[:1] == [1] and -1 not in sizes:
        free = np.array([-1, *sizes[1:]], "<i4").view(np.uint8)
        shape = schema.TensorT(
            name=tensor.name,
            shape=tensor.shape,
            hasRank=True,
            type=tensor.type,
            buffer=flatbuffer.append_buffer(model, free),
        )
        index = flatbuffer.append_tensor(graph, shape)
        operator.inputs = np.array(
            [operator.inputs[0], index, *operator.inputs[2:]], np.int32
        )


def _same_for_each_sample(content: bytes, freed: bytes) -> bool:
    """Whether a freed file computes for several samples what the other does for one."""
    single = Runner(content)
    rng = np.random.default_rng(0)
    try:
        for size in SIZES:
            batch = [_random(rng, size, details) for _, details in single.inputs]
            expected, received = single(batch), Runner(freed)(batch)
            for x, y in zip(expected, received, strict=True):
                limit = TOLERANCE * np.abs(x).max(initial=0)
                if x.shape != y.shape or not np.allclose(
                    x, y, rtol=0, atol=limit, equal_nan=True
                ):
                    return False
    except ValueError:  # LiteRT refuses it
        return False
    return True


def _random(rng, size, details):
    sizes = [n if n > 0 else FREE_SIZE for n in details["shape_signature"][1:]]
    if np.issubdtype(details["dtype"], np.floating):
        return rng.standard_normal((size, *sizes)).astype(details["dtype"])
    # 0 and 1 are valid wherever integers mean something.
    return rng.integers(0, 2, (size, *sizes)).astype(details["dtype"])
