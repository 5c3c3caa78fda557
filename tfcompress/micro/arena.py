"""Arena as a budget: kernels that are split, or stay INT8, until a file fits."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.encodings.choice import DECODE_BYTES
from tfcompress.micro.kernels import StoredKernel, stored_kernels
from tfcompress.micro.rewrite import (
    PART_BYTES,
    SPLITTABLE,
    encoded_chunk,
    encoded_file,
)
from tfcompress.micro.runtime import MicroRuntime, sufficient_arena

# Bytes of the smallest parts that are tried: the runtime keeps more of each.
LEAST_PART = 256
# Bytes of the arena that the runtime keeps for each part at least, on x86-64.
_KEPT_PER_PART = 300


def least_arena(runtime: MicroRuntime, content: bytes) -> int:
    """Returns the bytes of the smallest arena in which a file runs."""
    return runtime("least_arena", content, sufficient_arena(content))


def fitting_file(
    runtime: MicroRuntime,
    plain: bytes,
    budget: float | None,
    encodings: Mapping[int, tuple[int, ...]] | None = None,
) -> tuple[bytes, list[dict[str, Any]], int, int]:
    """Encodes an int8 file so that it runs in an arena.

    A decoded kernel lies in the arena while it is read. Where it does not fit next to
    the activations of that time, its operator is split by output channels. Where that
    is impossible, or takes more bytes than INT8, the kernel stays in INT8.

    Args:
        runtime: a `MicroRuntime`.
        plain: the int8 file.
        budget: bytes of the arena, or None for any.
        encodings: those that kernels may have, as `encoded_file` takes them.

    Returns:
        `(content, rows, arena, plain arena)`: the file and the rows of `encoded_file`,
        and the smallest arenas of both files, in bytes.

    Raises:
        ValueError: if not even the int8 file runs in the arena.
    """
    plain_arena = least_arena(runtime, plain)
    if budget is None:
        return *_encoded(runtime, plain, {}, encodings), plain_arena
    if plain_arena > budget:
        raise ValueError(
            f"`arena` is at least {plain_arena:,} bytes for this model, without any "
            f"encoded kernel. Received: {budget:,.0f} bytes. Make the activations "
            "smaller, by smaller inputs or fewer channels."
        )

    def fits(parts):
        return runtime("fits", encoded_file(plain, parts, encodings)[0], budget)

    options = _Planner(plain, plain_arena, encodings).options(budget, fits)
    best = min(options, key=lambda parts: len(encoded_file(plain, parts, encodings)[0]))
    return *_encoded(runtime, plain, best, encodings), plain_arena


def _encoded(runtime, plain, parts, encodings):
    content, rows = encoded_file(plain, parts, encodings)
    return content, rows, least_arena(runtime, content)


class _Planner:
    """Planner of the parts of each kernel.

    Args:
        content: the int8 file.
        arena: int. Smallest arena in which it runs.
        encodings: those that kernels may have.
    """

    def __init__(
        self,
        content: bytes,
        arena: int,
        encodings: Mapping[int, tuple[int, ...]] | None,
    ) -> None:
        self._model = flatbuffer.read(content)
        self._graph = self._model.subgraphs[0]
        self._kernels = stored_kernels(self._model, encodings)
        self._live = self._live_bytes()
        # Memory of the runtime itself.
        self._kept = arena - max(self._live, default=0)

    def options(
        self, budget: float, fits: Callable[[Mapping[int, int]], bool]
    ) -> Iterator[dict[int, int]]:
        """Yields parts of each operator that fit, as `encoded_file` takes them.

        Args:
            budget: bytes of the arena.
            fits: function that tells whether a file with given parts runs there.
        """
        limit = float(max((kernel.codes.size for kernel in self._kernels), default=0))
        while limit >= LEAST_PART:
            parts = {
                x.operators[0]: self._within(x, budget, limit) for x in self._kernels
            }
            if fits(parts):
                yield parts
                break
            limit *= 0.8
        is_whole = limit >= LEAST_PART and all(
            parts[kernel.operators[0]]
            for kernel in self._kernels
            if _saving(kernel) > 0
        )
        if not is_whole:
            yield self._one_by_one(budget, fits)

    def _within(self, kernel: StoredKernel, budget: float, limit: float) -> int:
        """Returns the fewest parts of at most `limit` bytes; 0 if there are none."""
        for count in self._counts(kernel, budget):
            if kernel.codes.size <= limit * count:
                return count
        return 0

    def _one_by_one(
        self, budget: float, fits: Callable[[Mapping[int, int]], bool]
    ) -> dict[int, int]:
        """Returns parts of kernels that are encoded one after the other.

        Those that save most come first, each in as few parts as fit.
        """
        chosen = {kernel.operators[0]: 0 for kernel in self._kernels}
        for kernel in sorted(self._kernels, key=lambda x: -_saving(x)):
            for count in self._counts(kernel, budget):
                tried = {**chosen, kernel.operators[0]: count}
                if fits(tried):
                    chosen = tried
                    break
        return chosen

    def _counts(self, kernel: StoredKernel, budget: float) -> Iterator[int]:
        """Yields the numbers of parts to try, while they save bytes of the file.

        The runtime keeps some memory for each part, so that smaller parts are not
        always better.
        """
        live = max(self._live[place] for place in kernel.operators)
        free = budget - self._kept - live
        readers = len(kernel.operators)
        saving, count = _saving(kernel), 1
        channels = len(kernel.codes)
        most = channels if self._can_split(kernel, budget) else 1
        while count <= most and saving > (count - 1) * readers * (
            DECODE_BYTES + PART_BYTES
        ):
            part = -(-channels // count) * (kernel.codes.size // channels)
            if part + (count - 1) * readers * _KEPT_PER_PART <= free:
                yield count
            count += max(1, count // 4)

    def _can_split(self, kernel: StoredKernel, budget: float) -> bool:
        return kernel.reader in SPLITTABLE and all(
            self._can_split_reader(kernel, place, budget) for place in kernel.operators
        )

    def _can_split_reader(
        self, kernel: StoredKernel, place: int, budget: float
    ) -> bool:
        operator = self._graph.operators[place]
        source, target = operator.inputs[0], operator.outputs[0]
        is_grouped = (
            kernel.reader == "CONV_2D"
            and kernel.codes.shape[-1] != self._graph.tensors[source].shape[-1]
        )
        # The parts of the output and the whole of it are there at the same time.
        return not is_grouped and self._live[place] + self._bytes(target) <= budget

    def _live_bytes(self) -> list[int]:
        """Returns the bytes of the computed tensors that each operator needs kept."""
        operators = self._graph.operators
        first = dict.fromkeys(self._graph.inputs.tolist(), 0)
        last = dict.fromkeys(self._graph.outputs.tolist(), len(operators) - 1)
        for place, operator in enumerate(operators):
            for index in _computed(self._model, self._graph, operator.outputs):
                first.setdefault(index, place)
                last[index] = max(last.get(index, 0), place)
            for index in _computed(self._model, self._graph, operator.inputs):
                last[index] = max(last.get(index, 0), place)
        return [
            sum(
                self._bytes(index)
                for index, start in first.items()
                if start <= place <= last.get(index, start)
            )
            for place in range(len(operators))
        ]

    def _bytes(self, index):
        tensor = self._graph.tensors[index]
        is_byte = tensor.type in (schema.TensorType.INT8, schema.TensorType.BOOL)
        return (1 if is_byte else 4) * int(np.prod(tensor.shape))


def _saving(kernel: StoredKernel) -> int:
    """Returns about how many bytes the file gets smaller by an encoded kernel."""
    found = encoded_chunk(kernel, kernel.codes)
    if found is None:
        return 0
    return kernel.codes.size - found.bytes - len(kernel.operators) * DECODE_BYTES


def _computed(
    model: schema.ModelT, graph: schema.SubGraphT, indices: Iterable[int]
) -> list[int]:
    """The indices of tensors that are computed, and neither constant nor left out."""
    return [
        int(index)
        for index in indices
        if index >= 0 and flatbuffer.constant(model, graph.tensors[index]) is None
    ]
