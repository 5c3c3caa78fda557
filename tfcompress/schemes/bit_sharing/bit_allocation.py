"""Bit allocation by dynamic programming: bits and filters that meet a BOPs budget.

A Lagrange multiplier finds the filters, and a dynamic program the bits with them.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfcompress.core.budget import SLACK
from tfcompress.schemes.bit_sharing.bops_model import BopsModel, BopsTerm
from tfcompress.schemes.bit_sharing.filter_allocation import filters_within
from tfcompress.schemes.bit_sharing.learned_gates import (
    Bits,
    FilterGroups,
    LearnedGates,
    OpenGroups,
)

# Resolution of the budget in the dynamic program; rounding is to the safe side.
_BUCKETS = 20_000
# Changes of filters that are tried at most to come nearer to the budget.
_MOST_CHANGES = 100


def allocate(
    bops_model: BopsModel, gates: LearnedGates, budget: float
) -> tuple[Bits, OpenGroups, float]:
    """Finds the allocation nearest to the gates with BOPs in (1 - SLACK, 1] * budget.

    1. `filters_within` finds groups of filters.
    2. A dynamic program over the budget finds the bits of all layers with the least
       regret.
    3. Single layers open or close groups where bits alone cannot use the budget, or
       where that has less regret.

    Args:
        bops_model: the `BopsModel` of the model.
        gates: the learned gates.
        budget: float, in BOPs.

    Returns:
        `(bits, open_groups, bops)`. BOPs exceed the budget only if no allocation fits.
    """
    open_groups = filters_within(bops_model, gates, budget)
    options = layer_options(bops_model, gates)
    best = best_bits(bops_model, gates, options, open_groups, budget)
    for name, changed in _nearest_changes(gates.filters, open_groups):
        before, open_groups[name] = open_groups[name], changed
        other = best_bits(bops_model, gates, options, open_groups, budget)
        if _is_better(other, best, budget):
            best = other
        else:
            open_groups[name] = before
    return best.bits, open_groups, best.bops


def spend_rest(
    bits: Bits,
    open_groups: OpenGroups,
    bops_model: BopsModel,
    gates: LearnedGates,
    budget: float,
) -> Bits:
    """Spends the rest of a budget on the gates of least regret.

    Args:
        bits, open_groups: dicts that `allocate` returned.
        bops_model, gates, budget: as `allocate` received them.

    Returns:
        The bits of all layers, none lower than before.
    """
    kept = gates.kept(open_groups)
    while True:
        wider: list[tuple[float, int, Bits]] = []
        for name, pair in bits.items():
            for place, candidates in enumerate(
                (gates.weights[name], gates.activations[name])
            ):
                index = candidates.bits.index(pair[place]) + 1
                if index < len(candidates.bits):
                    changed = list(pair)
                    changed[place] = candidates.bits[index]
                    other = {**bits, name: (changed[0], changed[1])}
                    if bops_model.total(other, kept) <= budget:
                        regret = candidates.regret(index) - candidates.regret(index - 1)
                        wider.append((regret, len(wider), other))
        if not wider:
            return bits
        bits = min(wider)[-1]


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Bits of all layers, their BOPs, and the sum of the regrets."""

    bits: Bits
    bops: float
    regret: float


def _is_better(other: Allocation, best: Allocation, budget: float) -> bool:
    """Whether `other` uses the budget with less regret, or comes nearer to it."""
    if other.bops > budget:
        return False
    used, used_before = (x.bops >= (1 - SLACK) * budget for x in (other, best))
    if used and used_before:
        return other.regret < best.regret
    return used or (not used_before and other.bops > best.bops)


def _nearest_changes(
    filters: Mapping[str, FilterGroups], open_groups: OpenGroups
) -> list[tuple[str, np.ndarray]]:
    """`(layer name, open groups)` with other numbers of them, least regret first."""
    changes = []
    for name, groups in filters.items():
        now = int(open_groups[name].sum())
        for count in range(groups.fewest_open(), len(groups.margins) + 1):
            if count != now:
                changed = groups.surest(count)
                regret = groups.regret(changed != open_groups[name])
                changes.append((regret, name, changed))
    changes.sort(key=lambda change: change[0])
    return [(name, changed) for _, name, changed in changes[:_MOST_CHANGES]]


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """Choices of bits of one layer.

    Attributes:
        term: the `BopsTerm` of the layer.
        bits: list of (weight bits, activation bits).
        bops: float array (choices,). BOPs with all filters.
        regrets: float array (choices,).
    """

    term: BopsTerm
    bits: list[tuple[int, int]]
    bops: np.ndarray
    regrets: np.ndarray

    def units(self, kept: Mapping[Any, float], unit: float) -> np.ndarray:
        """Returns the BOPs in whole units, rounded up, int (choices,).

        Args:
            kept: `{layer name: share of its filters}`, 1 if missing.
            unit: float. BOPs of a unit.
        """
        share = kept.get(self.term.reads, 1.0) * kept.get(self.term.makes, 1.0)
        units = np.ceil(self.bops * share / unit - 1e-9)
        return np.minimum(units, _BUCKETS + 1).astype(int)  # more are too many


def layer_options(
    bops_model: BopsModel, gates: LearnedGates
) -> dict[str, LayerOptions]:
    """Returns the `LayerOptions` of all layers with bits to choose, by name.

    Of choices with the same BOPs, only the one of least regret is there.
    """
    terms = {term.name: term for term in bops_model.terms}
    found = {}
    for name, weight in gates.weights.items():
        activation = gates.activations[name]
        least: dict[int, tuple[float, tuple[int, int]]] = {}
        for (i, w), (j, a) in itertools.product(
            enumerate(weight.bits), enumerate(activation.bits)
        ):
            regret = weight.regret(i) + activation.regret(j)
            least[w * a] = min(least.get(w * a, (np.inf, (w, a))), (regret, (w, a)))
        found[name] = LayerOptions(
            terms[name],
            [bits for _, bits in least.values()],
            terms[name].macs * np.array(list(least), float),
            np.array([regret for regret, _ in least.values()]),
        )
    return found


def best_bits(
    bops_model: BopsModel,
    gates: LearnedGates,
    options: Mapping[str, LayerOptions],
    open_groups: OpenGroups,
    budget: float,
) -> Allocation:
    """Returns the bits of least regret for these filters, with the regret of both.

    Args:
        bops_model, gates, budget: see `allocate`.
        options: the `layer_options` of both.
        open_groups: dict of layer name to boolean array (groups,).
    """
    best = _allocate_bits(bops_model, gates, options, gates.kept(open_groups), budget)
    regret = sum(
        groups.regret((groups.margins > 0) != open_groups[name])
        for name, groups in gates.filters.items()
    )
    return dataclasses.replace(best, regret=best.regret + regret)


def _allocate_bits(bops_model, gates, options, kept, budget):
    """The bits of least regret within the budget and its slack.

    If no bits are within the slack, those nearest to the budget from below. If none are
    below the budget, the lowest bits.
    """
    names = list(gates.weights)
    constant = bops_model.total(dict.fromkeys(names, (0, 0)), kept)
    unit = max(budget - constant, 1e-9) / _BUCKETS
    units = {name: options[name].units(kept, unit) for name in names}
    # best[k]: least regret with a sum of costs of k units; choice[i, k] leads there.
    best = np.full(_BUCKETS + 1, np.inf)
    best[0] = 0.0
    choice: np.ndarray = np.zeros((len(names), _BUCKETS + 1), np.int32)
    for i, name in enumerate(names):
        new = np.full_like(best, np.inf)
        for index, shift in enumerate(units[name]):
            if shift > _BUCKETS:
                continue
            shifted = best[: _BUCKETS + 1 - shift] + options[name].regrets[index]
            better = shifted < new[shift:]
            np.copyto(new[shift:], shifted, where=better)
            np.copyto(choice[i, shift:], index, where=better)
        best = new
    reachable = np.flatnonzero(np.isfinite(best))
    if not reachable.size:
        lowest = gates.lowest_bits()
        return Allocation(lowest, bops_model.total(lowest, kept), np.inf)
    # The window is on the whole budget, the units only on the part that bits decide.
    # Units round up, so the window is widened by the most that rounding adds.
    first = ((1 - SLACK) * budget - constant) / unit + len(names)
    window = reachable[reachable >= min(first, _BUCKETS)]
    end = window[np.argmin(best[window])] if window.size else reachable[-1]
    bits, total_regret = {}, float(best[end])
    for i, name in reversed(list(enumerate(names))):
        index = choice[i, end]
        bits[name] = options[name].bits[index]
        end -= units[name][index]
    return Allocation(bits, bops_model.total(bits, kept), total_regret)
