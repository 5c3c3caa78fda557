"""From learned gates to a choice of bits and filters that meets a budget."""

import dataclasses

import numpy as np

from tfcompress.core.budget import SLACK

# Resolution of the budget in the search for bits; rounding is to the safe side.
_BUCKETS = 20_000
# What a change costs apart from its margins: of two equal choices, the nearer one.
_CHANGE = 1e-3
# Changes of filters that are tried at most to come nearer to the budget.
_MOST_CHANGES = 100


@dataclasses.dataclass(frozen=True)
class Gated:
    """Candidates for a number of bits, and how sure their gates are.

    Attributes:
        bits: increasing bit-widths.
        margins: float array (len(bits) - 1,): positive where a gate is open, the
            larger the surer; see `BitGates.margins`.
    """

    bits: tuple
    margins: np.ndarray

    def learned(self):
        """Index of the bits that the gates choose: up to the first closed gate."""
        is_open = np.append(np.asarray(self.margins) > 0, False)
        return int(np.argmin(is_open))

    def regret(self, index):
        """How much gates have to be moved against their margins to choose `index`."""
        learned, margins = self.learned(), np.asarray(self.margins)
        closing = np.maximum(margins[index:learned], 0).sum()
        opening = np.maximum(-margins[learned:index], 0).sum()
        return float(closing + opening) + _CHANGE * abs(index - learned)


def choose(bops_model, weights, activations, filters, budget):
    """The choice nearest to the learned gates with BOPs in (1 - SLACK, 1] * budget.

    First the filters: as learned, and fewer where even the lowest bits exceed the
    budget. Then the bits of all layers together: the smallest sum of regrets that
    meets the budget, by dynamic programming over it. Then single layers open groups of
    filters again, or close them, where bits alone cannot use the budget, or where that
    is less to regret than what the bits have to give.

    Args:
        bops_model: a `tfcompress.schemes.bit_sharing.bops_model.BopsModel`.
        weights, activations: `{layer name: Gated}`, the same layers in both.
        filters: `{layer name: (margins, group sizes, most closed)}` with two arrays
            (groups,), and the number of groups that may close.
        budget: in BOPs, or None to take what the gates say.

    Returns:
        `(bits, open_groups, bops)`: `{layer name: (weight bits, activation bits)}`,
        `{layer name: boolean array (groups,)}` and what it costs. Only if nothing
        fits is that more than `budget`.
    """
    open_groups = {name: margins > 0 for name, (margins, *_) in filters.items()}
    for name, (margins, _, most_closed) in filters.items():
        stay = np.argsort(-margins)[: len(margins) - most_closed]
        open_groups[name][stay] = True

    def kept():
        return _shares(filters, open_groups)

    if budget is None:
        bits = {
            name: tuple(
                gated.bits[gated.learned()]
                for gated in (weights[name], activations[name])
            )
            for name in weights
        }
        return bits, open_groups, bops_model.total(bits, kept())
    lowest = {name: (weights[name].bits[0], activations[name].bits[0])
              for name in weights}  # fmt: skip
    for name, group in _least_important(filters, open_groups):
        if bops_model.total(lowest, kept()) <= budget:
            break
        open_groups[name][group] = False

    def best_bits():
        best = _choose_bits(bops_model, weights, activations, kept(), budget)
        regret = sum(
            _filter_regret(margins, (margins > 0) != open_groups[name])
            for name, (margins, *_) in filters.items()
        )
        return dataclasses.replace(best, regret=best.regret + regret)

    best = best_bits()
    for name, changed in _nearest_changes(filters, open_groups):
        before, open_groups[name] = open_groups[name], changed
        other = best_bits()
        if _is_better(other, best, budget):
            best = other
        else:
            open_groups[name] = before
    return best.bits, open_groups, best.bops


def fill(bits, bops_model, weights, activations, filters, open_groups, budget):
    """Spends what a choice leaves of the budget on the gates nearest to opening.

    Args:
        bits, open_groups: as `choose` returned them; the others as it took them.

    Returns:
        `{layer name: (weight bits, activation bits)}`, none lower than before.
    """
    kept = _shares(filters, open_groups)
    while True:
        wider = []
        for name, pair in bits.items():
            for place, gated in enumerate((weights[name], activations[name])):
                index = gated.bits.index(pair[place]) + 1
                if index < len(gated.bits):
                    changed = list(pair)
                    changed[place] = gated.bits[index]
                    other = {**bits, name: tuple(changed)}
                    if bops_model.total(other, kept) <= budget:
                        regret = gated.regret(index) - gated.regret(index - 1)
                        wider.append((regret, len(wider), other))
        if not wider:
            return bits
        bits = min(wider)[-1]


def _shares(filters, open_groups):
    """`{layer name: share of its filters that stay}`."""
    return {
        name: float(sizes[open_groups[name]].sum() / sizes.sum())
        for name, (_, sizes, _) in filters.items()
    }


def _is_better(other, best, budget):
    """Whether a choice uses the budget, and with less to regret, or comes nearer."""
    if other.bops > budget:
        return False
    used, used_before = (x.bops >= (1 - SLACK) * budget for x in (other, best))
    if used and used_before:
        return other.regret < best.regret
    return used or (not used_before and other.bops > best.bops)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Bits of all layers, what they cost, and the sum of their regrets."""

    bits: dict
    bops: float
    regret: float


def _nearest_changes(filters, open_groups):
    """`(layer name, boolean array (groups,))`: other numbers of open groups.

    Those that overrule the smallest margins come first.
    """
    changes = []
    for name, (margins, _, most_closed) in filters.items():
        ranked = np.argsort(-margins)
        now = int(open_groups[name].sum())
        for count in range(len(margins) - most_closed, len(margins) + 1):
            changed = np.zeros(len(margins), bool)
            changed[ranked[:count]] = True
            regret = _filter_regret(margins, changed != open_groups[name])
            if count != now:
                changes.append((regret, name, changed))
    changes.sort(key=lambda change: change[0])
    return [(name, changed) for _, name, changed in changes[:_MOST_CHANGES]]


def _filter_regret(margins, overruled):
    # One threshold serves all groups, so that the margin of each is that of all.
    return np.abs(margins[overruled]).sum() / len(margins)


def _least_important(filters, open_groups):
    """`(layer name, group)` of the open groups that may close, in that order."""
    candidates = []
    for name, (margins, _, most_closed) in filters.items():
        groups = np.flatnonzero(open_groups[name])
        may_close = most_closed - (len(margins) - len(groups))
        for group in groups[np.argsort(margins[groups])][:may_close]:
            candidates.append((margins[group], name, int(group)))
    return [(name, group) for _, name, group in sorted(candidates)]


def _choose_bits(bops_model, weights, activations, kept, budget):
    """The `_Choice` of least regret within the budget and its slack.

    If nothing is within the slack, what comes nearest to the budget from below; if
    nothing is below, the lowest bits.
    """
    names = list(weights)
    fixed = bops_model.total(dict.fromkeys(names, (0, 0)), kept)
    options = [
        _options(bops_model, name, weights[name], activations[name], kept)
        for name in names
    ]
    unit = max(budget - fixed, 1e-9) / _BUCKETS
    # best[k]: least regret with a sum of costs of k units; choice[i, k] leads there.
    best = np.full(_BUCKETS + 1, np.inf)
    best[0] = 0.0
    choice = np.zeros((len(names), _BUCKETS + 1), np.int32)
    for i, layer_options in enumerate(options):
        new = np.full_like(best, np.inf)
        for index, (_, cost, regret) in enumerate(layer_options):
            shift = int(np.ceil(cost / unit - 1e-9))
            if shift > _BUCKETS:
                continue
            shifted = np.full_like(best, np.inf)
            shifted[shift:] = best[: _BUCKETS + 1 - shift] + regret
            better = shifted < new
            new[better] = shifted[better]
            choice[i, better] = index
        best = new
    lowest = {name: layer_options[0][0] for name, layer_options in
              zip(names, options, strict=True)}  # fmt: skip
    reachable = np.flatnonzero(np.isfinite(best))
    if not reachable.size:
        return _Choice(lowest, bops_model.total(lowest, kept), np.inf)
    # The window is on the whole budget, the units only on what bits decide. Units
    # round up, so the window is widened by what rounding may have added.
    first = ((1 - SLACK) * budget - fixed) / unit + len(names)
    window = reachable[reachable >= min(first, _BUCKETS)]
    end = window[np.argmin(best[window])] if window.size else reachable[-1]
    bits, regret = {}, float(best[end])
    for i in reversed(range(len(names))):
        pair, cost, _ = options[i][choice[i, end]]
        bits[names[i]] = pair
        end -= int(np.ceil(cost / unit - 1e-9))
    return _Choice(bits, bops_model.total(bits, kept), regret)


def _options(bops_model, name, weight, activation, kept):
    """List of `((weight bits, activation bits), bops, regret)` of one layer."""
    (term,) = [term for term in bops_model.terms if term.name == name]
    share = kept.get(term.reads, 1.0) * kept.get(term.makes, 1.0)
    return [
        (
            (weight_bits, activation_bits),
            term.macs * share * weight_bits * activation_bits,
            weight.regret(i) + activation.regret(j),
        )
        for i, weight_bits in enumerate(weight.bits)
        for j, activation_bits in enumerate(activation.bits)
    ]
