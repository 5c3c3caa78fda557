"""MACs or parameters as a function of kept channels and ranks."""

from dataclasses import dataclass

import numpy as np

from tfcompress.cost.layer_costs import layer_costs

UNITS = ("macs", "params")


@dataclass(frozen=True)
class WidthTerm:
    """One layer's part.

    Attributes:
        whole: its kernel's MACs or parameters with all channels, undecomposed.
        per_output: what each output channel costs besides: parameters of biases and of
            batch normalization. For a carrier of channels, such as a depthwise
            convolution, all that it costs.
        matrix: `(rows, columns)` of its kernel as a matrix, or None if it is not
            factorized: k^2 * input channels, output channels.
        reads, writes: int arrays, the class of each input and output channel; empty
            where they are not followed.
    """

    name: str
    whole: float
    per_output: float
    matrix: tuple | None
    reads: np.ndarray
    writes: np.ndarray


class WidthModel:
    """What a model costs when channels and ranks are gone.

    Args:
        model: a model without cuts.
        channels: its `tfcompress.graph.channels.Channels`.
        unit: "macs" or "params".
        factorized: names of the layers whose rank may fall.
        margin: a layer is decomposed only where that costs less than `margin` times the
            undecomposed one: two layers take more time than their MACs say.

    Attributes:
        terms: `{name: WidthTerm}`.
        factorized: as given.
    """

    def __init__(self, model, channels, unit, factorized, margin):
        self.margin = margin
        self.factorized = tuple(factorized)
        self._whole = set()
        none = np.zeros(0, int)
        self.terms = {}
        for cost in layer_costs(model):
            name = cost.name
            reads = channels.read.get(name, none)
            writes = channels.written.get(name, none)
            whole = (cost.macs or 0) if unit == "macs" else cost.weights
            rest = 0 if unit == "macs" else cost.params - cost.weights
            matrix = None
            if name in factorized:
                columns = cost.kernel_shape[-1]
                matrix = (cost.weights // columns, columns)
            if not writes.size and reads.size:  # a carrier
                rest, whole, writes, reads = rest + whole, 0, reads, none
            if not writes.size:
                rest, whole = 0, whole + rest
            self.terms[name] = WidthTerm(
                name, whole, rest / max(1, writes.size), matrix, reads, writes
            )

    def keep_whole(self, name):
        """Settles that a layer is not decomposed, whatever that would save."""
        self._whole.add(name)

    def total(self, alive, ranks):
        """The cost of the whole model.

        Args:
            alive: boolean array over the classes of channels.
            ranks: `{layer name: rank}` of the factorized layers.
        """
        return sum(self._cost(term, alive, ranks) for term in self.terms.values())

    def whole(self):
        """The cost before anything is cut."""
        return sum(
            term.whole + term.per_output * term.writes.size
            for term in self.terms.values()
        )

    def is_decomposed(self, name, alive, rank):
        """Whether a layer of that rank is to become two layers."""
        term = self.terms[name]
        if name in self._whole:
            return False
        merged, per_rank = self._merged_and_per_rank(term, alive)
        return rank * per_rank < self.margin * merged

    def per_rank(self, name, alive):
        """What one filter of a layer's basis costs when it is decomposed."""
        return self._merged_and_per_rank(self.terms[name], alive)[1]

    def rank_costs(self, name, alive):
        """What a layer's kernel costs with fewer ranks.

        Returns:
            `(costs, whole)`: float array (ranks,), with 1, 2, ... of them as two
            layers, infinite where it stays one; and its cost as one layer.
        """
        merged, per_rank = self._merged_and_per_rank(self.terms[name], alive)
        counts = range(1, min(self.terms[name].matrix) + 1)
        worth = [self.is_decomposed(name, alive, count) for count in counts]
        return np.where(worth, per_rank * np.array(counts), np.inf), merged

    def per_class(self, count):
        """What removing each of `count` classes alone would save, float (count,)."""
        saved = np.zeros(count)
        for term in self.terms.values():
            for index in (term.reads, term.writes):
                np.add.at(saved, index, term.whole / max(1, index.size))
            np.add.at(saved, term.writes, term.per_output)
        return saved

    def _cost(self, term, alive, ranks):
        rest = term.per_output * alive[term.writes].sum()
        merged, per_rank = self._merged_and_per_rank(term, alive)
        rank = ranks.get(term.name)
        if rank is not None and self.is_decomposed(term.name, alive, rank):
            return rest + rank * per_rank
        return rest + merged

    def _merged_and_per_rank(self, term, alive):
        """Cost of one layer, and per filter of the basis if it becomes two.

        k^2 c n and k^2 c + n per position: EDP, where pruning and merging are decided.
        """
        inputs = alive[term.reads].mean() if term.reads.size else 1.0
        outputs = alive[term.writes].mean() if term.writes.size else 1.0
        merged = term.whole * inputs * outputs
        if term.matrix is None:
            return merged, np.inf
        rows, columns = term.matrix
        return merged, term.whole * (inputs / columns + outputs / rows)
