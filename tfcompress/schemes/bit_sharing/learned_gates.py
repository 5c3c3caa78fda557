"""Gates of all layers that the BOPs depend on, with the margins that judge them.

The margins of gates say which bits and filters to keep, and how surely. The regret of
an allocation is the sum of the margins that it overrules. If margins are the costs of
closing gates, all gates are open, and the regret is the cost of those that close.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

# Regret of a change apart from its margins: of two equal allocations, the nearer one.
_CHANGE = 1e-3

# Layer name to (weight bits, activation bits).
Bits = dict[str, tuple[int, int]]
# Layer name to a boolean array (groups,), true where a group of filters is open.
OpenGroups = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BitCandidates:
    """Candidate bit-widths of one kernel or input, and the margins of their gates.

    Attributes:
        bits: tuple of int. Bit-widths, increasing.
        margins: float array (len(bits) - 1,). Margin of each gate, positive where it is
            open; see `BitGates.margins`.
    """

    bits: tuple[int, ...]
    margins: np.ndarray

    def learned(self) -> int:
        """Returns the index of the learned bits: all gates up to the first closed."""
        is_open: np.ndarray = np.append(np.asarray(self.margins) > 0, False)
        return int(np.argmin(is_open))

    def regret(self, index: int) -> float:
        """Returns the sum of the margins that the bits at `index` overrule."""
        learned, margins = self.learned(), np.asarray(self.margins)
        closing = np.maximum(margins[index:learned], 0).sum()
        opening = np.maximum(-margins[learned:index], 0).sum()
        return float(closing + opening) + _CHANGE * abs(index - learned)


@dataclasses.dataclass(frozen=True)
class FilterGroups:
    """Groups of one layer's filters, and the margins of their gates.

    Attributes:
        margins: float array (groups,). Margin of each gate, positive where it is open.
        sizes: int array (groups,). Filters of each group.
        most_closed: int. Number of groups that may close.
    """

    margins: np.ndarray
    sizes: np.ndarray
    most_closed: int

    def learned(self) -> np.ndarray:
        """Returns the learned groups, boolean (groups,), true where one is open.

        The surest groups stay open where more than `most_closed` would close.
        """
        is_open = self.margins > 0
        is_open[np.argsort(-self.margins)[: self.fewest_open()]] = True
        return is_open

    def fewest_open(self) -> int:
        """Returns the number of groups that have to stay open."""
        return len(self.margins) - self.most_closed

    def surest(self, count: int) -> np.ndarray:
        """Returns the `count` groups of the largest margins, boolean (groups,)."""
        is_open: np.ndarray = np.zeros(len(self.margins), bool)
        is_open[np.argsort(-self.margins)[:count]] = True
        return is_open

    def regret(self, overruled: np.ndarray) -> float:
        """Returns the regret of overruled gates, a boolean array (groups,)."""
        # One threshold serves all groups, so that the margin of each is that of all.
        return np.abs(self.margins[overruled]).sum() / len(self.margins)

    def share(self, is_open: np.ndarray) -> float:
        """Returns the share of the filters that are in open groups."""
        return float(self.sizes[is_open].sum() / self.sizes.sum())


@dataclasses.dataclass(frozen=True)
class LearnedGates:
    """Gates of all layers that the BOPs depend on.

    Attributes:
        weights: dict. Layer name to the `BitCandidates` of its kernel.
        activations: dict. The same names to the `BitCandidates` of its input.
        filters: dict. Layer name to the `FilterGroups`; some of the layers.
    """

    weights: Mapping[str, BitCandidates]
    activations: Mapping[str, BitCandidates]
    filters: Mapping[str, FilterGroups]

    def learned_bits(self) -> Bits:
        """Returns the bits that the gates choose."""
        return {
            name: (
                weight.bits[weight.learned()],
                self.activations[name].bits[self.activations[name].learned()],
            )
            for name, weight in self.weights.items()
        }

    def learned_groups(self) -> OpenGroups:
        """Returns the groups of filters that the gates keep open."""
        return {name: groups.learned() for name, groups in self.filters.items()}

    def lowest_bits(self) -> Bits:
        """Returns the lowest candidates."""
        return {
            name: (weight.bits[0], self.activations[name].bits[0])
            for name, weight in self.weights.items()
        }

    def kept(self, open_groups: OpenGroups) -> dict[str, float]:
        """Returns the share of each layer's filters that stays."""
        return {
            name: groups.share(open_groups[name])
            for name, groups in self.filters.items()
        }
