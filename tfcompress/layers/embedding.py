"""Embeddings whose tables are quantized or packed, with one scale per row."""

import keras
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.layers.kernel import ComputedKernel
from tfcompress.layers.packed import PackedKernel
from tfcompress.layers.quantized import QuantizedKernel
from tfcompress.types import Tensor


class _ComputedTable(ComputedKernel):
    """Mixin before an embedding, whose kernel Keras knows as `embeddings`."""

    @property
    def embeddings(self) -> Tensor:
        """Table that the layer computes with, a float tensor (rows, columns)."""
        return self.kernel


class _PackedTable(_ComputedTable, PackedKernel):
    """Mixin before an embedding that decodes the rows that it looks up, and no more."""

    def rows(self, indices: Tensor) -> Tensor:
        """Returns decoded rows of the table, float32.

        Args:
            indices: integers of any shape.

        Returns:
            Tensor of the shape of the indices, and an axis of columns.
        """
        if keras.backend.standardize_dtype(indices.dtype) not in ("int32", "int64"):
            indices = ops.cast(indices, "int32")
        scale = ops.convert_to_tensor(self.kernel_scale)
        # NumPy's negative indices count from the end of the table, not of its bytes.
        indices = ops.where(indices < 0, indices + self.input_dim, indices)
        columns = ops.arange(self.output_dim, dtype=indices.dtype)
        places = ops.expand_dims(indices, -1) * self.output_dim + columns
        return self.codes_at(places, scale.dtype) * ops.take(scale, indices, axis=0)


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantEmbedding(_ComputedTable, QuantizedKernel, keras.layers.Embedding):
    """`keras.layers.Embedding` with a `kernel_quantizer` of its table."""

    call = keras.layers.Embedding.call  # indices are not quantized


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantReversibleEmbedding(
    _ComputedTable, QuantizedKernel, keras.layers.ReversibleEmbedding
):
    """`keras.layers.ReversibleEmbedding` with a `kernel_quantizer` of its table."""

    call = keras.layers.ReversibleEmbedding.call


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedEmbedding(_PackedTable, keras.layers.Embedding):
    """`keras.layers.Embedding` on packed codes."""

    def call(self, inputs: Tensor) -> Tensor:
        return ops.cast(self.rows(inputs), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfcompress")
class PackedReversibleEmbedding(_PackedTable, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` on packed codes."""

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        if reverse:
            return super().call(inputs, reverse=True)
        rows = ops.cast(self.rows(inputs), self.compute_dtype)
        mask = keras.layers.Embedding.compute_mask(self, inputs)
        if mask is not None:
            keras_private.set_mask(rows, mask)
        return rows
