"""Choice of the operator and container of each kernel, under a latency allowance."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert.interpreter import OpResolverType

from tfcompress.arguments import check_number
from tfcompress.compat.litert_private import schema
from tfcompress.cost.knapsack import multiple_choice_knapsack
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import Match, decode, kernel_tensor
from tfcompress.litert.lowering.costs import CostTable
from tfcompress.litert.lowering.dense import DenseWriter
from tfcompress.litert.lowering.reader import Reader, free_sizes, readers
from tfcompress.litert.runtime import Runner
from tfcompress.quantizers.packing import packed_bytes

# Predicted time that each way to optimize allows, relative to a file of the same graph.
ALLOWANCES = {"latency": 1.05, "balanced": 1.0}
REFERENCES = {
    "latency": "the fastest file with INT8 kernels",
    "balanced": "the float file",
}
# Bytes of an operator with its result and its constants in a flatbuffer.
OPERATOR_BYTES = 200

# `(graph, index of the kernel's tensor, Match)`.
Place: TypeAlias = tuple[schema.SubGraphT, int, Match]


def check_allowance(allowance: float | None, optimize: str) -> None:
    """Raises ValueError unless an allowance is a number, for a mode that has one."""
    if allowance is None:
        return
    if optimize not in ALLOWANCES:
        raise ValueError(
            f"`allowance` is expected with one of optimize={tuple(ALLOWANCES)}. "
            f"Received: allowance={allowance!r}, optimize={optimize!r}."
        )
    check_number(
        "allowance",
        allowance,
        f"a finite number above 0, such as 1.3 for 1.3 times the time of "
        f"{REFERENCES[optimize]}",
        lambda x: 0 < x < float("inf"),
    )


@dataclasses.dataclass(frozen=True)
class Option:
    """Container of a kernel, and the operator that reads it.

    Attributes:
        form: "kept" for the operator as it is, "dense" for FULLY_CONNECTED, or
            "decoded" for the operator on a kernel that DEQUANTIZE makes float.
        bits: int. Bits of the container.
        bytes: int. Bytes of the kernel, and of operators that are added.
        time: float. Predicted microseconds of all operators that read the kernel.
    """

    form: str
    bits: int
    bytes: int
    time: float


class Lowering:
    """Writer of kernels in the containers with the fewest bytes under an allowance.

    The predicted time of all operators that read kernels is at most the allowance times
    that of a file of the same graph. Other operators are left out: they take the same
    time in both files, or less with int8 activations.

    Attributes:
        report: dict. "predicted_time", {"relative_to", "ratio", "allowance"}, and
            "layers", a list of {"layer", "operator", "type", "bytes", "time",
            "reason"}. "time" is relative to the layer's with an INT8 kernel. Empty
            before `apply`.

    Args:
        optimize: "latency" or "balanced".
        shapes: shape of each input of the model, for operators on free sizes.
        allowance: float or None. Predicted time, relative to the file with INT8 kernels
            for "latency" and to the float file for "balanced". None takes that of
            `ALLOWANCES`.
    """

    def __init__(
        self,
        optimize: str,
        shapes: Sequence[Sequence[int]],
        allowance: float | None = None,
    ) -> None:
        self.report: dict[str, Any] = {}
        self._optimize = optimize
        self._shapes = shapes
        self._allowance = ALLOWANCES[optimize] if allowance is None else allowance
        self._table = CostTable()

    def apply(self, model: schema.ModelT, places: Sequence[Place]) -> list[Match]:
        """Rewrites the kernels of a file, and the operators that read them.

        Args:
            model: a parsed file with INT8 kernels, which is changed. Its inputs are in
                the model's order.
            places: kernels that may be rewritten.

        Returns:
            The `Match` of each place, as it is in the file.
        """
        shapes = self._shapes_in_a_run(model)
        all_readers = {
            id(graph): readers(model, graph, shapes if number == 0 else {})
            for number, graph in enumerate(model.subgraphs)
        }
        reading = [
            [reader for reader in all_readers[id(graph)] if reader.kernel == index]
            for graph, index, _ in places
        ]
        options = [
            self._options(found, by)
            for (_, _, found), by in zip(places, reading, strict=True)
        ]
        every = [reader for found in all_readers.values() for reader in found]
        chosen = self._choose(options, every)
        writers = {id(graph): DenseWriter(model, graph) for graph in model.subgraphs}
        matches, rows = [], []
        for (graph, index, found), by, offered, option in zip(
            places, reading, options, chosen, strict=True
        ):
            if option.form == "dense":
                found = found.in_container(option.bits, as_matrix=True)
                graph.tensors[index] = kernel_tensor(model, found)
                for reader in by:
                    _replace(graph, reader, writers[id(graph)].operators(reader))
            elif option.form == "decoded":
                found = found.in_container(option.bits)
                decode(model, graph, index, found)
            matches.append(found)
            if by:
                rows.append((every.index(by[0]), _row(found, by, offered, option)))
        self.report["layers"] = [row for _, row in sorted(rows, key=lambda x: x[0])]
        return matches

    def _shapes_in_a_run(self, model: schema.ModelT) -> Mapping[int, Sequence[int]]:
        """Returns the shapes of tensors of the first graph, if some sizes are free."""
        graph = model.subgraphs[0]
        sizes = [free_sizes(tensor)[1:] for tensor in graph.tensors if tensor.hasRank]
        if not any(-1 in along for along in sizes):
            return {}
        kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        runner = Runner(flatbuffer.write(model), resolver=kernels)
        runner(
            [
                np.zeros(shape, details["dtype"])
                for shape, (_, details) in zip(self._shapes, runner.inputs, strict=True)
            ]
        )
        return runner.shapes()

    def _options(self, found: Match, reading: Sequence[Reader]) -> list[Option]:
        """Returns the options of a kernel, INT8 first."""
        size, least = found.codes.size, found.bits_of_codes()
        options = [Option("kept", 8, size, self._time(reading, "INT8"))]
        if not reading:  # TRANSPOSE_CONV, which has one form
            return options
        for bits in (4, 2):
            if bits < least or any(reader.obstacle(bits) for reader in reading):
                continue
            extra = sum(reader.extra_operators() for reader in reading)
            count = packed_bytes(size, bits) + OPERATOR_BYTES * extra
            time = self._time(reading, f"INT{bits}")
            options.append(Option("dense", bits, count, time))
        if all(reader.activations == "float" for reader in reading):
            # XNNPACK decodes constants of INT8 when it loads a file, and no others.
            time = self._time(reading, "FLOAT32")
            options.append(Option("decoded", 8, size + OPERATOR_BYTES, time))
        return options

    def _time(self, reading: Sequence[Reader], container: str) -> float:
        return sum(self._table.time(reader, container) for reader in reading)

    def _choose(
        self, options: Sequence[Sequence[Option]], every: Sequence[Reader]
    ) -> list[Option]:
        now = sum(self._time_now(reader) for reader in every)
        reference = sum(self._reference(reader) for reader in every)
        fixed = now - sum(offered[0].time for offered in options)
        fastest = sum(min(option.time for option in offered) for offered in options)
        # Some files with integer kernels are slower than the float file in any case.
        budget = max(self._allowance * reference - fixed, fastest * (1 + 1e-9))
        choices = multiple_choice_knapsack(
            {str(i): np.array([x.time for x in o]) for i, o in enumerate(options)},
            {str(i): np.array([x.bytes for x in o]) for i, o in enumerate(options)},
            budget,
            off_hull=True,
        )
        chosen = [offered[choices[str(i)]] for i, offered in enumerate(options)]
        time = fixed + sum(option.time for option in chosen)
        ratio = time / reference if every else 1.0  # nothing reads a kernel
        self.report["predicted_time"] = {
            "relative_to": REFERENCES[self._optimize],
            "ratio": round(float(ratio), 3),
            "allowance": self._allowance,
            "litert": self._table.litert,
            "machine": self._table.machine,
        }
        return chosen

    def _reference(self, reader: Reader) -> float:
        """Returns the time of an operator in the file to compare with."""
        decoded = self._table.time(reader, "FLOAT32", "float")
        if self._optimize == "balanced":
            return decoded
        now = self._time_now(reader)
        return now if reader.activations == "int8" else min(now, decoded)

    def _time_now(self, reader: Reader) -> float:
        is_float = reader.kernel_type == schema.TensorType.FLOAT32
        return self._table.time(reader, "FLOAT32" if is_float else "INT8")


def _replace(graph, reader, operators):
    # An operator is found by identity: equal ones compare as equal.
    place = next(i for i, x in enumerate(graph.operators) if x is reader.operator)
    graph.operators[place : place + 1] = operators


def _row(found, reading, offered, option):
    """Returns the line of a kernel in the report."""
    slower = option.time / offered[0].time
    dense = [other for other in offered if other.form == "dense"]
    if option.form == "dense":
        reason = f"FULLY_CONNECTED reads {option.bits} bits at {slower:.2f} of the time"
    elif option.form == "decoded":
        reason = f"decoded to float when loaded: {slower:.2f} of the time"
    elif found.bits_of_codes() == 8:
        reason = "its codes need 8 bits"
    elif not dense:
        reason = next(filter(None, (reader.obstacle(4) for reader in reading)))
    elif min(other.bytes for other in dense) >= option.bytes:
        reason = "operators for fewer bits would take more bytes than they save"
    else:
        smaller = min(dense, key=lambda other: other.bytes)
        reason = (
            f"{smaller.bits} bits would take {smaller.time / option.time:.2f} of the "
            "time, and the allowance is spent where it saves more"
        )
    return {
        "layer": found.kernel.layer,
        "operator": "FULLY_CONNECTED" if option.form == "dense" else reading[0].name,
        "type": f"INT{option.bits}",
        "bytes": packed_bytes(found.codes.size, option.bits),
        "time": round(float(slower), 2),
        "reason": reason,
    }
