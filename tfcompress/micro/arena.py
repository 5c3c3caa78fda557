"""Arena as a budget: kernels that are split, or stay INT8, until a file fits."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro.kernels import DECODE_BYTES, StoredKernel, stored_kernels
from tfcompress.micro.rewrite import (
    PART_BYTES,
    SPLITTABLE,
    chunks_of,
    encoded_chunk,
    encoded_file,
)
from tfcompress.micro.runtime import MicroRuntime, sufficient_arena

# Bytes of the arena that the runtime keeps for each DECODE on a 64-bit processor.
_KEPT_PER_DECODE = 160
# Attempts to fit a file into its arena, each with smaller kernels.
_ATTEMPTS = 24


def least_arena(runtime: MicroRuntime, content: bytes) -> int:
    """Returns the bytes of the smallest arena in which a file runs."""
    return runtime("least_arena", content, sufficient_arena(content))


def fitting_file(
    runtime: MicroRuntime, plain: bytes, budget: float | None
) -> tuple[bytes, list[dict[str, Any]], int, int]:
    """Encodes an int8 file so that it runs in an arena.

    A decoded kernel lies in the arena while it is read. Where it does not fit beside
    the activations of that time, its operator is split by output channels. Where that
    is impossible, or takes more bytes than INT8, the kernel stays in INT8.

    Args:
        runtime: a `MicroRuntime`.
        plain: the int8 file.
        budget: bytes of the arena, or None for any.

    Returns:
        `(content, rows, arena, plain arena)`: the file and the rows of `encoded_file`,
        and the smallest arenas of both files, in bytes.

    Raises:
        ValueError: if not even the int8 file runs in the arena.
    """
    plain_arena = least_arena(runtime, plain)
    if budget is None:
        return *_encoded(runtime, plain, {}), plain_arena
    if plain_arena > budget:
        raise ValueError(
            f"`arena` is at least {plain_arena:,} bytes for this model, without any "
            f"encoded kernel. Received: {budget:,.0f} bytes. Make the activations "
            "smaller, by smaller inputs or fewer channels."
        )
    planner = _Planner(plain)
    kept = plain_arena - planner.peak + _KEPT_PER_DECODE * len(planner.kernels)
    for _ in range(_ATTEMPTS):
        found = _encoded(runtime, plain, planner.parts(budget - kept))
        if found[2] <= budget:
            return *found, plain_arena
        kept += found[2] - budget
    in_int8 = {kernel.operator: 0 for kernel in planner.kernels}
    return *_encoded(runtime, plain, in_int8), plain_arena


def _encoded(runtime, plain, parts):
    content, rows = encoded_file(plain, parts)
    return content, rows, least_arena(runtime, content)


class _Planner:
    """Planner of the parts of each kernel.

    Attributes:
        kernels: list of `StoredKernel`.
        peak: int. Most bytes of computed tensors that are needed at the same time.

    Args:
        content: the int8 file.
    """

    def __init__(self, content: bytes) -> None:
        self._model = flatbuffer.read(content)
        self._graph = self._model.subgraphs[0]
        self.kernels = stored_kernels(self._model)
        self._live = self._live_bytes()
        self.peak = max(self._live, default=0)

    def parts(self, room: float) -> dict[int, int]:
        """Returns the parts of each operator, as `encoded_file` takes them.

        Args:
            room: bytes for computed tensors and decoded kernels together.
        """
        return {kernel.operator: self._parts(kernel, room) for kernel in self.kernels}

    def _parts(self, kernel: StoredKernel, room: float) -> int:
        left = int(room - self._live[kernel.operator])
        if kernel.codes.size <= left:
            return 1
        channels = len(kernel.codes)
        rows = left // max(1, kernel.codes.size // channels)
        if rows < 1 or not self._can_split(kernel, room):
            return 0
        parts = math.ceil(channels / rows)
        sizes = [
            found.bytes + DECODE_BYTES if found else chunk.size
            for chunk in chunks_of(kernel, parts)
            for found in [encoded_chunk(kernel, chunk)]
        ]
        total = sum(sizes) + parts * PART_BYTES
        return parts if total < kernel.codes.size else 0

    def _can_split(self, kernel: StoredKernel, room: float) -> bool:
        operator = self._graph.operators[kernel.operator]
        source, target = operator.inputs[0], operator.outputs[0]
        is_grouped = (
            kernel.reader == "CONV_2D"
            and kernel.codes.shape[-1] != self._graph.tensors[source].shape[-1]
        )
        # The parts of the output and the whole of it are there at the same time.
        needed = self._live[kernel.operator] + self._bytes(target)
        return kernel.reader in SPLITTABLE and not is_grouped and needed <= room

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


def _computed(
    model: schema.ModelT, graph: schema.SubGraphT, indices: Iterable[int]
) -> list[int]:
    """The indices of tensors that are computed, and neither constant nor left out."""
    return [
        int(index)
        for index in indices
        if index >= 0 and flatbuffer.constant(model, graph.tensors[index]) is None
    ]
