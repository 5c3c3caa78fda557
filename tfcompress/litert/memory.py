"""Peak memory of a `.tflite` while it runs."""

from collections.abc import Iterable, Sequence

from ai_edge_litert.interpreter import OpResolverType

from tfcompress.litert import flatbuffer
from tfcompress.litert.runtime import File, Runner, read_file
from tfcompress.litert.timing import ones


def peak_memory(file: File, shapes: Sequence[Sequence[int]] | None = None) -> int:
    """Returns the size of the tensor arena for one sample, in bytes.

    LiteRT's own kernels plan one arena, in which tensors that are not needed at the
    same time share memory. It holds scratch buffers and decoded kernels, but no
    constants of the file. Delegates such as XNNPACK keep memory of their own, and are
    turned off here.

    Args:
        file: path of a `.tflite`, or its content as bytes.
        shapes: shape of each input with the batch axis. A file whose inputs have free
            sizes needs it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it cannot be run, or has free sizes and `shapes` is None.
    """
    content = read_file(file)
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Runner(content, resolver=kernels)
    runner(ones(runner, shapes))
    model = flatbuffer.read(content)
    constants = {
        index
        for index, tensor in enumerate(model.subgraphs[0].tensors)
        if flatbuffer.constant(model, tensor) is not None
    }
    return _union_length(
        (start, start + size)
        for index, (start, size) in runner.places().items()
        if index not in constants
    )


def _union_length(ranges: Iterable[tuple[int, int]]) -> int:
    total, end = 0, 0
    for start, stop in sorted(ranges):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total
