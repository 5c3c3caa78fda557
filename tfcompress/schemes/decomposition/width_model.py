"""MACs or parameters of a model as a function of kept channels and ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress.cost.input_shape import InputShape
from tfcompress.cost.layer_costs import LayerCost, layer_costs
from tfcompress.graph.channels import Channels


@dataclass(frozen=True)
class WidthTerm:
    """Cost of one layer, in MACs or parameters, with all channels and ranks.

    Attributes:
        name: str. Name of the layer.
        kernel_cost: float. Cost of the kernel, not decomposed.
        per_output: float. Other cost of each output channel: parameters of biases and
            batch normalization. The whole cost of a carrier of channels, such as a
            depthwise convolution.
        matrix: (int, int) or None. Rows and columns of the kernel as a matrix,
            k^2 * input channels and output channels; None if it is not factorized.
        reads: int array. Channel dependency group of each input channel; empty where
            they are not followed.
        writes: int array. The same of each output channel.
    """

    name: str
    kernel_cost: float
    per_output: float
    matrix: tuple[int, int] | None
    reads: np.ndarray
    writes: np.ndarray

    @property
    def full_rank(self) -> int:
        """Rank of the kernel before any is removed; 0 if it is not factorized."""
        return min(self.matrix or (0,))


class WidthModel:
    """Cost of a model with some of its channels and ranks.

    Args:
        model: model with all channels.
        channels: `tfcompress.graph.channels.Channels` of the model.
        unit: str. "macs" or "params".
        factorized: names of the layers whose rank may fall.
        margin: float. A layer is decomposed only where that costs less than `margin`
            times one layer: two layers take more time than their MACs say.
        input_shape: see `layer_costs`.

    Attributes:
        terms: dict of str to `WidthTerm`. Terms of the layers by name.
        factorized: tuple of str, as given.
    """

    def __init__(
        self,
        model: keras.Model,
        channels: Channels,
        unit: str,
        factorized: Iterable[str],
        margin: float,
        input_shape: InputShape | None = None,
    ) -> None:
        self.margin = margin
        self.factorized = tuple(factorized)
        self._not_decomposed: set[str] = set()
        self.terms = {
            cost.name: self._term(cost, channels, unit)
            for cost in layer_costs(model, input_shape)
        }

    def _term(self, cost: LayerCost, channels: Channels, unit: str) -> WidthTerm:
        none: np.ndarray = np.zeros(0, int)
        reads = channels.read.get(cost.name, none)
        writes = channels.written.get(cost.name, none)
        kernel = (cost.macs or 0) if unit == "macs" else cost.weights
        rest = 0 if unit == "macs" else cost.params - cost.weights
        matrix = None
        if cost.name in self.factorized and cost.kernel_shape:
            columns = cost.kernel_shape[-1]
            matrix = (cost.weights // columns, columns)
        if not writes.size and reads.size:  # a carrier
            rest, kernel, writes, reads = rest + kernel, 0, reads, none
        if not writes.size:
            rest, kernel = 0, kernel + rest
        per_output = rest / max(1, writes.size)
        return WidthTerm(cost.name, kernel, per_output, matrix, reads, writes)

    def never_decompose(self, name: str) -> None:
        """Makes a layer stay one layer, whatever two would save."""
        self._not_decomposed.add(name)

    def cost(self, keep_groups: np.ndarray, ranks: Mapping[str, int]) -> float:
        """Returns the cost of the model, the sum of `costs`."""
        return sum(self.costs(keep_groups, ranks).values())

    def costs(
        self, keep_groups: np.ndarray, ranks: Mapping[str, int]
    ) -> dict[str, float]:
        """Returns the cost of each layer by name.

        Args:
            keep_groups: bool array (groups,). Keep mask of the channel dependency
                groups.
            ranks: dict of str to int. Ranks of the factorized layers by name.
        """
        return {
            name: self.layer_cost(name, keep_groups, ranks.get(name))
            for name in self.terms
        }

    def layers_of_groups(self, count: int) -> list[set[str]]:
        """Returns the names of the layers whose cost each group changes.

        Args:
            count: int. Number of channel dependency groups.
        """
        layers: list[set[str]] = [set() for _ in range(count)]
        for name, term in self.terms.items():
            for group in (*term.reads, *term.writes):
                layers[group].add(name)
        return layers

    def full_cost(self) -> float:
        """Returns the cost with all channels, nothing decomposed."""
        return sum(
            term.kernel_cost + term.per_output * term.writes.size
            for term in self.terms.values()
        )

    def is_decomposed(self, name: str, keep_groups: np.ndarray, rank: int) -> bool:
        """Whether a layer of that rank becomes two layers."""
        if name in self._not_decomposed:
            return False
        merged, per_rank = self._merged_and_per_rank(self.terms[name], keep_groups)
        return rank * per_rank < self.margin * merged

    def cost_per_rank(self, name: str, keep_groups: np.ndarray) -> float:
        """Returns the cost of one rank of a layer that is decomposed."""
        return self._merged_and_per_rank(self.terms[name], keep_groups)[1]

    def rank_costs(
        self, name: str, keep_groups: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Returns the costs of a layer's kernel with fewer ranks.

        Returns:
            `(costs, merged_cost)`. Float array (ranks,): cost of two layers with 1, 2,
            ... ranks, infinite where it stays one layer. Float: cost of one layer.
        """
        term = self.terms[name]
        merged, per_rank = self._merged_and_per_rank(term, keep_groups)
        counts = range(1, term.full_rank + 1)
        worth = [self.is_decomposed(name, keep_groups, count) for count in counts]
        return np.where(worth, per_rank * np.array(counts), np.inf), merged

    def savings(self, count: int) -> np.ndarray:
        """Returns the cost that the removal of each channel alone saves.

        Args:
            count: int. Number of channel dependency groups.

        Returns:
            Float array (count,).
        """
        saved = np.zeros(count)
        for term in self.terms.values():
            for index in (term.reads, term.writes):
                np.add.at(saved, index, term.kernel_cost / max(1, index.size))
            np.add.at(saved, term.writes, term.per_output)
        return saved

    def layer_cost(self, name: str, keep_groups: np.ndarray, rank: int | None) -> float:
        """Returns the cost of one layer; a rank of None is all of a plain layer."""
        term = self.terms[name]
        rest = term.per_output * np.count_nonzero(keep_groups[term.writes])
        merged, per_rank = self._merged_and_per_rank(term, keep_groups)
        if (
            rank is not None
            and name not in self._not_decomposed
            and rank * per_rank < self.margin * merged
        ):
            return rest + rank * per_rank
        return rest + merged

    def _merged_and_per_rank(self, term, keep_groups):
        """Cost of one layer, and of each rank of two layers.

        k^2 c n and k^2 c + n per position: EDP, where it decides on merging.
        """
        inputs, outputs = (
            np.count_nonzero(keep_groups[x]) / x.size if x.size else 1.0
            for x in (term.reads, term.writes)
        )
        merged = term.kernel_cost * inputs * outputs
        if term.matrix is None:
            return merged, np.inf
        rows, columns = term.matrix
        return merged, term.kernel_cost * (inputs / columns + outputs / rows)
