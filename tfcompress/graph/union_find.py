"""Union-find over integer ids, vectorized over arrays of them."""

import numpy as np


class UnionFind:
    """Equivalence classes of the ids 0, 1, 2, ..., which can be united."""

    def __init__(self) -> None:
        # The parent of each id is in its class and no greater. A root is its own.
        self._parents: np.ndarray = np.zeros(0, np.int64)

    def new(self, count: int) -> np.ndarray:
        """Ids of `count` new classes, an int array."""
        ids: np.ndarray = len(self._parents) + np.arange(count)
        self._parents = np.concatenate([self._parents, ids])
        return ids

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unites the classes of `left[i]` and `right[i]`, of int arrays (n,)."""
        while True:
            left, right = self._roots(left), self._roots(right)
            low, high = np.minimum(left, right), np.maximum(left, right)
            if (low == high).all():
                return
            # A root with several partners takes the lowest. The next round unites the
            # pairs that are still apart.
            np.minimum.at(self._parents, high, low)

    def classes(self) -> np.ndarray:
        """Class of each id, an int array: 0, 1, 2, ... in the order of the ids."""
        roots = self._roots(np.arange(len(self._parents)))
        return np.unique(roots, return_inverse=True)[1]

    def _roots(self, ids):
        while True:
            parents = self._parents[ids]
            if (parents == ids).all():
                return parents
            ids = parents
