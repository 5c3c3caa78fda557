"""Groups of filters for a BOPs budget, by a Lagrange multiplier.

Bits and filters multiply each other in the BOPs, so that no dynamic program finds both.
With a multiplier on the BOPs, the best bits of a layer depend on no other bits, and the
best number of groups only on those of the layers beside it.
"""

import numpy as np

from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.learned_gates import LearnedGates, OpenGroups

# Rounds over all layers at one multiplier. Few change anything after the third.
_MOST_ROUNDS = 20
# Multipliers that are tried, in units of regret per budget, and steps between them.
# Regrets are about 1, and may be millions where outputs overflow.
_MULTIPLIERS, _BISECTIONS = np.geomspace(1e-6, 1e9, 51), 20


def filters_within(
    bops_model: BopsModel, gates: LearnedGates, budget: float
) -> OpenGroups:
    """Finds the groups of filters with which regret + multiplier * BOPs is least.

    The multiplier is the smallest at which the BOPs, with the bits of the same
    allocation, meet the budget. All layers start with their most filters.

    Args:
        bops_model: the `BopsModel` of the model.
        gates: the learned gates.
        budget: float, in BOPs.

    Returns:
        Open groups of each layer in `gates.filters`; as few as may be if no multiplier
        meets the budget.
    """
    if not gates.filters:
        return {}
    relaxation = _Relaxation(bops_model, gates)
    low = 0.0
    for high in _MULTIPLIERS / budget:
        if relaxation.minimize(high) <= budget:
            break
        low = high
    else:
        return {n: x.surest(x.fewest_open()) for n, x in gates.filters.items()}
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high) if low else high / 2
        if relaxation.minimize(middle) <= budget:
            high = middle
        else:
            low = middle
    relaxation.minimize(high)
    return {
        name: groups.surest(relaxation.counts[name])
        for name, groups in gates.filters.items()
    }


class _Relaxation:
    """Regret + multiplier * BOPs, minimized over the layers in turn.

    Attributes:
        counts: dict. Layer name to the number of open groups of the last minimum.
    """

    def __init__(self, bops_model: BopsModel, gates: LearnedGates) -> None:
        self._terms = bops_model.terms
        # Bits of weights * bits of activations, and their regrets, flat arrays.
        self._bits = {name: _bit_choices(gates, name) for name in gates.weights}
        self._filters = {n: _filter_choices(x) for n, x in gates.filters.items()}
        self._beside = {
            name: [term for term in self._terms if name in (term.reads, term.makes)]
            for name in gates.filters
        }
        self.counts: dict[str, int] = {}

    def minimize(self, multiplier: float) -> float:
        """Minimizes the sum at a multiplier, and returns its BOPs."""
        shares = {name: kept[-1] for name, (_, kept, _) in self._filters.items()}
        products = {term.name: float(FLOAT_BITS**2) for term in self._terms}
        before = None
        for _ in range(_MOST_ROUNDS):
            for term in self._terms:
                if term.name in self._bits:
                    bits, regrets = self._bits[term.name]
                    size = term.macs * self._share(term, shares)
                    best = np.argmin(regrets + multiplier * size * bits)
                    products[term.name] = bits[best]
            for name, (counts, kept, regrets) in self._filters.items():
                bops = sum(
                    term.macs * products[term.name] * self._share(term, shares, name)
                    for term in self._beside[name]
                )
                best = np.argmin(regrets + multiplier * kept * bops)
                shares[name], self.counts[name] = kept[best], int(counts[best])
            if (products, shares) == before:
                break
            before = dict(products), dict(shares)
        return sum(
            term.macs * products[term.name] * self._share(term, shares)
            for term in self._terms
        )

    def _share(self, term, shares, without=None):
        sides = [side for side in (term.reads, term.makes) if side != without]
        return np.prod([shares.get(side, 1.0) for side in sides])


def _bit_choices(gates, name):
    weight, activation = gates.weights[name], gates.activations[name]
    bits = np.multiply.outer(weight.bits, activation.bits)
    regrets = np.add.outer(
        [weight.regret(i) for i in range(len(weight.bits))],
        [activation.regret(i) for i in range(len(activation.bits))],
    )
    return bits.reshape(-1), regrets.reshape(-1)


def _filter_choices(groups):
    """Numbers of open groups, and the filters' shares and the regrets with each."""
    counts = np.arange(groups.fewest_open(), len(groups.margins) + 1)
    order = np.argsort(-groups.margins)
    margins = groups.margins[order]
    opened = np.append(0.0, np.cumsum(np.maximum(-margins, 0.0)))
    closed = np.append(np.cumsum(np.maximum(margins, 0.0)[::-1])[::-1], 0.0)
    kept = np.append(0, np.cumsum(groups.sizes[order])) / groups.sizes.sum()
    return counts, kept[counts], (opened + closed)[counts] / len(margins)
