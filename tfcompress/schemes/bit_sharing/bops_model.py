"""BOPs as a function of all layers' bits and kept filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.cost.arithmetic import FLOAT_BITS, bops
from tfcompress.cost.input_shape import InputShape, sized_graph
from tfcompress.cost.layer_macs import layer_macs
from tfcompress.graph.graph import Graph
from tfcompress.schemes.bit_sharing.filters import Filters


@dataclass(frozen=True)
class BopsTerm:
    """Part of the BOPs that one layer takes.

    Attributes:
        name: str. Name of the layer, "outer/inner" in nested models.
        macs: int. MACs of all its calls, with all filters.
        reads: str or None. Name of the layer whose removable filters make its input.
        makes: str or None. Its own name if its filters can be removed.
    """

    name: str
    macs: int
    reads: str | None
    makes: str | None


class BopsModel:
    """Sum over the layers of MACs * weight bits * activation bits.

    A layer that loses a share of its filters loses that share of its MACs, and so do
    the layers that read it (Single-path Bit Sharing).

    Attributes:
        terms: list of `BopsTerm`.
        filters: `Filters` of the model.
        float_bops: int. BOPs with everything in float32.

    Args:
        graph: `tfcompress.graph.Graph` of the model.
        model: Functional or Sequential model, a plan's or a student's.
        input_shape: see `layer_costs`.
    """

    def __init__(
        self, graph: Graph, model: keras.Model, input_shape: InputShape | None = None
    ) -> None:
        self.filters = filters = graph.derived(Filters)
        removable = {
            name for name, found in filters.by_layer.items() if not found.why_kept
        }
        self.terms: list[BopsTerm] = []
        sized = graph if input_shape is None else sized_graph(model, input_shape)
        for cost in layer_macs(sized):
            if cost.macs:
                reads = filters.source.get(cost.name)
                self.terms.append(
                    BopsTerm(
                        cost.name,
                        cost.macs,
                        reads=reads if reads in removable else None,
                        makes=cost.name if cost.name in removable else None,
                    )
                )
        self.float_bops: int = sum(bops(term.macs) for term in self.terms)

    def total(
        self, bits: Mapping[str, tuple[Any, Any]], kept: Mapping[Any, Any]
    ) -> Any:
        """Returns the BOPs, a number, or a scalar tensor if an argument has tensors.

        Args:
            bits: `{layer name: (weight bits, activation bits)}`, numbers or scalar
                tensors. Layers that are missing count as float32.
            kept: `{layer name: share of its filters}`, numbers or scalar tensors. The
                share is 1 for layers that are missing.
        """
        rows = [
            (
                term.macs,
                kept.get(term.reads, 1.0),
                kept.get(term.makes, 1.0),
                *bits.get(term.name, (FLOAT_BITS, FLOAT_BITS)),
            )
            for term in self.terms
        ]
        if not any(ops.is_tensor(x) for row in rows for x in row):
            return sum(bops(macs * a * b, w, x) for macs, a, b, w, x in rows)
        # Vectors over the layers take few operations, whatever the model's depth.
        macs, a, b, w, x = (_vector(column) for column in zip(*rows, strict=True))
        return ops.sum(bops(macs * a * b, w, x))


def _vector(values):
    return ops.stack([x if ops.is_tensor(x) else np.float32(x) for x in values])
