"""State of a search for zeros and bits after each epoch."""

import numpy as np

from recipes.common.history import History


class SizeHistory(History):
    """Callback that records and prints the bits of a size-constrained student.

    A state has six entries, as `tfcompress.reporting.plot_sizes` draws them:

        searching: bool. Whether the search goes on.
        bits: dict. Layer name to bits of a code.
        sparsity: dict. Layer name to the share (0-1) of zero weights.
        size: float. Size of these codes, in the budget's unit.
        budget: float. Size that is asked for.
        residual: float or None. Distance |W - V| / |W| of ADMM, while it searches.
    """

    def state(self):
        space = self.model.size_space
        searching, codes = not space.is_frozen(), space.codes()
        return {
            "searching": searching,
            "bits": space.bits,
            "sparsity": {
                name: float(np.mean(x == 0)) for name, (x, _) in codes.items()
            },
            "size": float(space.budget.size_of(codes)),
            "budget": float(space.budget.total),
            "residual": space.residual if searching else None,
        }

    def describe(self, state):
        bits = " ".join(map(str, state["bits"].values()))
        zeros = " ".join(f"{100 * share:.0f}" for share in state["sparsity"].values())
        residual = state["residual"]
        distance = "" if residual is None else f"  |W-V|/|W|: {residual:.3f}"
        return (
            f"bits: {bits}  zeros %: {zeros}  size: {state['size']:,.0f} of "
            f"{state['budget']:,.0f}{distance}"
        )
