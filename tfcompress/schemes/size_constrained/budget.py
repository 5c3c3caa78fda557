"""Size of weights: value bits as the paper counts them, or bytes of a file."""

import math
from collections.abc import Collection, Mapping

import keras
import numpy as np
from keras import ops

from tfcompress.core.budget import parse_budget
from tfcompress.cost.arithmetic import (
    entropy_bits_of_counts,
    fast_bytes,
    value_bits,
    xz_bytes,
)
from tfcompress.cost.parse_bytes import parse_bytes
from tfcompress.graph.graph import Graph
from tfcompress.layers import PackedKernel
from tfcompress.micro.encodings.choice import encoded_bytes
from tfcompress.quantizers.packing import container_bits, pack, packed_bytes
from tfcompress.schemes.size_constrained.overhead import GRAPH_BYTES

# Content of more bytes is compressed fast where its size may be estimated.
_FAST_FROM = 2**15
# Of longer contents, evenly spread parts are compressed in place of all.
_SAMPLE, _PART = 2**21, 2**14
# Bytes of a weight among zeros after xz, with its place.
_XZ_BYTES_PER_WEIGHT = 3


def parse_size(size: float | str, reference: float) -> float:
    """Returns the bytes of a size as users write it, positive.

    Args:
        size: bytes, text with a unit ("100 kB", "1.5 MiB"), or a share of the
            reference as text ("1/50").
        reference: float. Bytes of the float model.

    Raises:
        ValueError: if the size is none of these, or not positive.
    """
    if isinstance(size, str) and size.strip()[-1:].isalpha():
        return parse_bytes(size, "size")
    return parse_budget(size, reference, "size")


class SizeBudget:
    """Budget of all kernels together, and the cost of each.

    The nominal bits of a kernel are those of an ideal coder. The size of the codes is
    measured, and the budget in nominal bits follows from the ratio of the two.

    Attributes:
        sparse: bool. Whether zeros cost less than other weights.
        nominal_per_real: float. Nominal bits per measured bit, 0.25 to 4.
        xz_per_fast: float. Bytes of codes after xz per byte after a faster compression,
            as last measured.

    Args:
        total: float. The budget, in bits if `unit` is "value_bits", else in bytes.
        unit: str. "value_bits": bits times non-zero weights, as in arXiv 1910.05897,
            Section 3; "xz_bytes": bytes of the file after xz; "bytes": bytes of the
            file as it is; "flash_bytes": the same of the file for microcontrollers.
        codebook: str. "uniform" or "kmeans".
        overhead: float. Bytes of the file that are not codes.
    """

    def __init__(
        self, total: float, unit: str, codebook: str, overhead: float = 0
    ) -> None:
        self.total = total
        self.unit = unit
        self.codebook = codebook
        self.overhead = overhead
        self.sparse = unit != "bytes"
        self._bits_per_unit = 1.0 if unit == "value_bits" else 8.0
        self.nominal_per_real = 1.0
        self.xz_per_fast = 1.0

    def allowed(self) -> float:
        """Returns the nominal bits for all kernels together."""
        real = self._bits_per_unit * (self.total - self.overhead)
        return real * self.nominal_per_real

    def rate(self, counts: np.ndarray, size: int, bits: int) -> float:
        """Returns the nominal bits of a kernel.

        Args:
            counts: array (K,). Number of weights at each level other than zero.
            size: int. Number of weights, zeros included.
            bits: int. Bits of a code.
        """
        nonzeros = counts.sum()
        if self.unit == "bytes":
            return size * container_bits(bits)
        if self.unit == "value_bits":
            return value_bits(nonzeros, self.index_bits(bits))
        bits_of_codes = entropy_bits_of_counts(np.append(counts, size - nonzeros))
        # A Huffman code has at least one bit.
        return max(bits_of_codes, size) if self.unit == "flash_bytes" else bits_of_codes

    def nominal_bits(
        self, codes: Mapping[str, tuple[np.ndarray, int]]
    ) -> dict[str, float]:
        """Returns the nominal bits of each kernel by layer name.

        Args:
            codes: `(int8 array, bits of a code)` by layer name.
        """
        return {
            name: self.rate(_counts_of_levels(array), array.size, bits)
            for name, (array, bits) in codes.items()
        }

    def least_size(self, sizes: Collection[int], least: int, bits: int) -> float:
        """Returns about the size of the smallest codes, with the overhead.

        Args:
            sizes: ints. Number of weights of each kernel.
            least: int. Number of weights that are not zero in each.
            bits: int. Bits of a code.
        """
        count = sum(min(least, size) for size in sizes)
        if self.unit == "value_bits":
            return value_bits(count, self.index_bits(bits))
        if self.unit == "bytes":
            stored = [packed_bytes(size, container_bits(bits)) for size in sizes]
            return self.overhead + sum(stored)
        return self.overhead + _XZ_BYTES_PER_WEIGHT * count

    def size_of(self, codes: Mapping[str, tuple[np.ndarray, int]]) -> float:
        """Returns the size of the codes and the overhead, in the budget's unit.

        Args:
            codes: `(int8 array, bits of a code)` by layer name.
        """
        if self.unit == "xz_bytes":
            return self.overhead + xz_bytes(packed_content(self._stored(codes)))
        return self.estimate_of(codes)

    def measure(self, codes: Mapping[str, tuple[np.ndarray, int]]) -> float:
        """Returns `size_of`, which `estimate_of` is from then on for the same codes.

        Of codes that take more than 2 MiB before xz, it is that of a sample.

        Args:
            codes: `(int8 array, bits of a code)` by layer name.
        """
        if self.unit != "xz_bytes":
            return self.size_of(codes)
        sample, multiple = sampled(packed_content(self._stored(codes)))
        coded = xz_bytes(sample)
        self.xz_per_fast = coded / max(fast_bytes(sample), 1)
        return self.overhead + multiple * coded

    def estimate_of(self, codes: Mapping[str, tuple[np.ndarray, int]]) -> float:
        """Returns `size_of`, of many codes estimated by a faster compression.

        xz takes a second for two megabytes, and a search needs many sizes.

        Args:
            codes: `(int8 array, bits of a code)` by layer name.
        """
        if self.unit == "value_bits":
            return sum(
                value_bits(np.count_nonzero(array), self.index_bits(bits))
                for array, bits in codes.values()
            )
        if self.unit == "bytes":
            return self.overhead + coded_bytes(self._stored(codes), compressed=False)
        if self.unit == "flash_bytes":
            return self.overhead + sum(encoded_bytes(x) for x, _ in codes.values())
        content, multiple = sampled(packed_content(self._stored(codes)))
        if len(content) < _FAST_FROM:
            return self.overhead + xz_bytes(content)
        return self.overhead + multiple * self.xz_per_fast * fast_bytes(content)

    def _stored(self, codes):
        """The codes with the bits of their places in a file."""
        if self.codebook == "kmeans":
            return {name: (x, 8) for name, (x, _) in codes.items()}
        return codes

    def index_bits(self, bits: int) -> int:
        """Returns the bits that tell non-zero levels apart, unused ones included."""
        # A uniform grid of b bits has 2^b - 2 of them.
        return 1 if self.codebook == "uniform" and bits == 2 else bits

    def calibrate(self, codes: Mapping[str, tuple[np.ndarray, int]]) -> float:
        """Sets `nominal_per_real` by the size of the codes, and returns `estimate_of`.

        Args:
            codes: `(int8 array, bits of a code)` by layer name.
        """
        size = self.estimate_of(codes)
        real = self._bits_per_unit * (size - self.overhead)
        nominal = sum(self.nominal_bits(codes).values())
        self.nominal_per_real = min(max(nominal / max(real, 1.0), 0.25), 4.0)
        return size


def coded_bytes(codes: Mapping[str, tuple[np.ndarray, int]], compressed: bool) -> int:
    """Returns the bytes of packed codes, as a file has them.

    Args:
        codes: `(int8 array, bits of a code)` by layer name.
        compressed: bool. Whether they are counted after xz.
    """
    if not compressed:
        return sum(packed_bytes(x.size, container_bits(b)) for x, b in codes.values())
    return xz_bytes(packed_content(codes))


def packed_content(codes: Mapping[str, tuple[np.ndarray, int]]) -> bytes:
    """Returns the packed codes of all kernels, as a file has them.

    Args:
        codes: `(int8 array, bits of a code)` by layer name.
    """
    packed = [pack(array, container_bits(bits)) for array, bits in codes.values()]
    return np.concatenate(packed).tobytes()


def sampled(content: bytes) -> tuple[bytes, float]:
    """Returns evenly spread parts of a content, and its length in lengths of these.

    A content of up to 2 MiB is returned whole.
    """
    if len(content) <= _SAMPLE:
        return content, 1.0
    begins = np.linspace(0, len(content) - _PART, _SAMPLE // _PART).astype(int)
    parts = b"".join(content[i : i + _PART] for i in begins)
    return parts, len(content) / len(parts)


def _counts_of_levels(codes):
    """Number of weights at each level other than zero that has any."""
    counts = np.bincount(np.asarray(codes, np.int8).ravel().view(np.uint8))
    return counts[1:][counts[1:] > 0]


def estimated_size(model: keras.Model, unit: str) -> int:
    """Returns the approximate bytes of a packed model's file, without LiteRT.

    Args:
        model: `keras.Model` from `tfcompress.finalize`.
        unit: "xz_bytes", "bytes" or "flash_bytes".
    """
    compressed = unit == "xz_bytes"
    layers = Graph(model).layers()
    codes = {
        name: (layer.codes, layer.kernel_bits)
        for name, layer in layers.items()
        if isinstance(layer, PackedKernel)
    }
    floats = b"".join(
        ops.convert_to_numpy(v).tobytes() for v in model.weights if v.dtype == "float32"
    )
    per_layer, per_file = GRAPH_BYTES[compressed]
    graph = per_layer * len(layers) + per_file
    # Scales that are the same for all channels take no bytes after xz.
    float_bytes = xz_bytes(floats) if compressed else len(floats)
    if unit == "flash_bytes":
        coded = sum(encoded_bytes(array) for array, _ in codes.values())
        tables = [x for x in layers.values() if type(x) is keras.layers.Embedding]
        float_bytes -= 3 * sum(math.prod(x.embeddings.shape) for x in tables)  # INT8
    else:
        coded = coded_bytes(codes, compressed)
    return coded + float_bytes + graph
