"""Undocumented APIs of LiteRT, flatbuffers, litert-quantizer and the converter."""

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np

# Generated classes of the `.tflite` format. LiteRT installs them for its own tools and
# does not document them.
from ai_edge_litert import schema_py_generated as schema

__all__ = ["SharingBuilder", "calibrate", "keep_kernels", "schema", "sort_arguments"]

# `Buffer.data` has `force_align: 16` in the schema; the generated Python code ignores
# it.
ALIGNMENT = 16


class SharingBuilder(flatbuffers.Builder):
    """Builder that writes equal vectors and strings once, and aligns byte vectors.

    Tables may point to the same vector. Sharing matters for `zero_point`: 8 bytes per
    channel, as long as `scale`, and all zero for every kernel.

    It depends on two internals. The generated `Pack` methods write every array by
    `CreateNumpyVector` and every name by `CreateString`. `Prep` aligns the next vector
    although the vector's own alignment is smaller.

    Args:
        size: int. Bytes of the first buffer; it grows.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._offsets: dict[tuple, int] = {}

    def CreateString(self, s: str | bytes, *args: Any) -> int:
        return self._once(("string", s), super().CreateString, s, *args)

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype == np.uint8:
            self.Prep(ALIGNMENT, x.size)
        return self._once((x.dtype.str, x.tobytes()), super().CreateNumpyVector, x)

    def _once(self, key: tuple, create: Callable[..., int], *args: Any) -> int:
        if key not in self._offsets:
            self._offsets[key] = create(*args)
        return self._offsets[key]


def sort_arguments(entries: list[schema.TensorMapT]) -> None:
    """Sorts the entries of a signature by the number at the end of their names.

    The converter sorts arguments by name, `input_10` before `input_2`, and says so
    nowhere.

    Args:
        entries: the inputs or the outputs of a `schema.SignatureDefT`, sorted in place.
    """
    entries.sort(key=lambda entry: int(entry.name.rsplit(b"_", 1)[1]))


def calibrate(
    quantizer: Any, batch: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the smallest and the largest value of each tensor for one batch.

    litert-quantizer documents neither the keys of its calibration result nor that
    `quantize` takes an edited one. TensorFlow's converter names the only signature of
    a file "serving_default".

    Args:
        quantizer: a `litert_quantizer.quantizer.Quantizer` of a float file.
        batch: `{input name: array}`.

    Returns:
        `{tensor name: {"min": array, "max": array}}`, arrays of one element.
    """
    return quantizer.calibrate({"serving_default": [batch]})


def keep_kernels(converter: Any) -> None:
    """Keeps a converter from multiplying kernels by factors of their input channels.

    A product with a constant before a dense layer, such as batch or RMS normalization,
    would become a part of the float kernel. Codes with a scale per output channel
    cannot express that kernel. The public API has no option for it.

    Args:
        converter: a `tf.lite.TFLiteConverter`, which is changed.
    """
    converter._experimental_disable_fuse_mul_and_fc = True
