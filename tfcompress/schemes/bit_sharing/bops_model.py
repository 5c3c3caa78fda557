"""BOPs as a function of every layer's bits and kept filters."""

from dataclasses import dataclass

from tfcompress.cost.arithmetic import FLOAT_BITS, bops
from tfcompress.cost.layer_costs import layer_costs
from tfcompress.schemes.bit_sharing.filters import Filters


@dataclass(frozen=True)
class BopsTerm:
    """One layer's part.

    Attributes:
        name: the layer's name; inside nested models "outer/inner".
        macs: of all its calls, with all filters.
        reads: name of the layer whose removable filters make its input, or None.
        makes: its own name if its filters can be removed, else None.
    """

    name: str
    macs: int
    reads: str | None
    makes: str | None


class BopsModel:
    """MACs * weight bits * activation bits, summed over the layers.

    A share of a layer's filters that is removed takes the same share of its MACs
    and of those of the layers that read it (Single-path Bit Sharing).

    Attributes:
        terms: list of `BopsTerm`.
        float_bops: the sum with everything in float32, an int.

    Args:
        graph: a `tfcompress.graph.graph.Graph`.
        model: the model it was made of.
    """

    def __init__(self, graph, model):
        filters = Filters(graph)
        removable = {name for name, found in filters.of.items() if not found.tied}
        self.terms = []
        for cost in layer_costs(model):
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
        self.float_bops = sum(bops(term.macs) for term in self.terms)

    def total(self, bits, kept):
        """The sum for given choices; numbers, or scalar tensors to differentiate.

        Args:
            bits: `{layer name: (weight bits, activation bits)}`; a layer that is not
                there counts as float32.
            kept: `{layer name: share of its filters}`; 1 for those not there.
        """
        return sum(
            bops(
                term.macs * kept.get(term.reads, 1.0) * kept.get(term.makes, 1.0),
                *bits.get(term.name, (FLOAT_BITS, FLOAT_BITS)),
            )
            for term in self.terms
        )
