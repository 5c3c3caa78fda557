"""What a search for zeros and bits stands at, epoch by epoch."""

import numpy as np

from recipes.common.history import History


class SizeHistory(History):
    """Prints and keeps the choice of a size-constrained student after each epoch.

    Each of `epochs` has what `tfcompress.reporting.plot_sizes` draws.
    """

    def now(self):
        space = self.model.size_space
        searching, codes = not space.is_fixed(), space.codes()
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

    def line(self, now):
        bits = " ".join(map(str, now["bits"].values()))
        zeros = " ".join(f"{100 * share:.0f}" for share in now["sparsity"].values())
        residual = now["residual"]
        distance = "" if residual is None else f"  |W-V|/|W|: {residual:.3f}"
        return (
            f"bits: {bits}  zeros %: {zeros}  size: {now['size']:,.0f} of "
            f"{now['budget']:,.0f}{distance}"
        )
