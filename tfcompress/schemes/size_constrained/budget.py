"""What weights cost: value bits as the paper counts them, or bytes of a file."""

import re

import numpy as np
from keras import ops

from tfcompress.core.budget import parse_budget
from tfcompress.cost.arithmetic import entropy_bits_of_counts, value_bits, xz_bytes
from tfcompress.layers import PackedKernel
from tfcompress.quantizers.packing import container_bits, pack, packed_bytes

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}
# Per layer and in all, after xz and as it is: a graph that cannot be measured here.
_GRAPH_BYTES = {True: (20, 700), False: (100, 3000)}


def parse_size(size, reference):
    """Bytes of a size as users write it.

    Args:
        size: bytes, text with a unit ("100 kB", "1.5 MiB"), or a share of the
            reference as text ("1/50").
        reference: what the float model takes.

    Returns:
        A positive float.

    Raises:
        ValueError: if it is nothing of that, or not positive.
    """
    if isinstance(size, str) and size.strip()[-1:].isalpha():
        match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]+)\s*", size.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(
                "`size` has one of the units B, kB, MB, KiB and MiB, as in '100 kB'. "
                f"Received: size={size!r}."
            )
        return parse_budget(f"{match[1]}", _UNITS[match[2]], "size")
    return parse_budget(size, reference, "size")


class SizeBudget:
    """One number for all kernels, and what each of them takes of it.

    Codes nominally take what an ideal coder makes of them. What they take in practice
    is measured, and nominal bits are granted accordingly.

    Attributes:
        sparse: whether zeros are cheaper than other weights.
        nominal_per_real: what has been learnt about how the two compare.

    Args:
        total: the budget, in bits if `counted` is "value_bits", else in bytes.
        counted: "value_bits", bits times non-zero weights as in arXiv 1910.05897,
            Section 3; "xz_bytes", bytes of the file after xz; or "bytes" of it as is.
        codebook: "uniform" or "kmeans".
        overhead: bytes of the file that are no codes.
    """

    def __init__(self, total, counted, codebook, overhead=0):
        self.total = total
        self.counted = counted
        self.codebook = codebook
        self.overhead = overhead
        self.sparse = counted != "bytes"
        self._bits_per_unit = 1.0 if counted == "value_bits" else 8.0
        self.nominal_per_real = 1.0

    def allowed(self):
        """Nominal bits for all kernels together."""
        real = self._bits_per_unit * (self.total - self.overhead)
        return real * self.nominal_per_real

    def rate(self, counts, size, bits):
        """Nominal bits of a kernel.

        Args:
            counts: how many weights have each level other than zero, (K,).
            size: how many weights there are.
            bits: of the codebook.
        """
        nonzeros = np.sum(counts)
        if self.counted == "bytes":
            return size * container_bits(bits)
        if self.counted == "value_bits":
            return value_bits(nonzeros, self.index_bits(bits))
        return entropy_bits_of_counts(np.append(counts, size - nonzeros))

    def nominal(self, codes):
        """Nominal bits of each kernel, `{layer name: number}`; codes as `size_of`'s."""
        counts = {
            name: np.unique(array[array != 0], return_counts=True)[1]
            for name, (array, _) in codes.items()
        }
        return {
            name: self.rate(counts[name], array.size, bits)
            for name, (array, bits) in codes.items()
        }

    def size_of(self, codes):
        """What codes really take, in the unit of the budget.

        Args:
            codes: `{layer name: (int8 array, bits of the codebook)}`.
        """
        if self.counted == "value_bits":
            return sum(
                value_bits(np.count_nonzero(array), self.index_bits(bits))
                for array, bits in codes.values()
            )
        if self.codebook == "kmeans":
            codes = {name: (x, 8) for name, (x, _) in codes.items()}
        return self.overhead + coded_bytes(codes, self.counted == "xz_bytes")

    def index_bits(self, bits):
        """Bits that tell non-zero levels apart, also those that no weight has now."""
        # A uniform grid of b bits has 2^b - 2 of them.
        return 1 if self.codebook == "uniform" and bits == 2 else bits

    def learn(self, codes):
        """Compares nominal bits with the size that comes of them, and returns that."""
        size = self.size_of(codes)
        real = self._bits_per_unit * (size - self.overhead)
        nominal = sum(self.nominal(codes).values())
        self.nominal_per_real = min(max(nominal / max(real, 1.0), 0.25), 4.0)
        return size


def coded_bytes(codes, compressed):
    """Bytes of packed codes, as a file has them.

    Args:
        codes: `{layer name: (int8 array, bits)}`.
        compressed: whether to count them after xz.
    """
    if not compressed:
        return sum(packed_bytes(x.size, container_bits(b)) for x, b in codes.values())
    packed = [pack(array, container_bits(bits)) for array, bits in codes.values()]
    return xz_bytes(np.concatenate(packed).tobytes())


def estimated_size(model, compressed):
    """Bytes of a packed model's file, roughly, for machines without LiteRT."""
    packed = [x for x in model.layers if isinstance(x, PackedKernel)]
    codes = {layer.name: (layer.codes, layer.kernel_bits) for layer in packed}
    floats = b"".join(
        ops.convert_to_numpy(v).tobytes() for v in model.weights if v.dtype == "float32"
    )
    per_layer, per_file = _GRAPH_BYTES[compressed]
    graph = per_layer * len(model.layers) + per_file
    # Scales that are the same for all channels take nothing after xz.
    floats = xz_bytes(floats) if compressed else len(floats)
    return coded_bytes(codes, compressed) + floats + graph
