"""Union-find over integer ids, on arrays of them."""

import numpy as np


class UnionFind:
    """Ids 0, 1, 2, ..., in classes that can be united."""

    def __init__(self):
        # An id points at one of its class, in the end at the lowest, the root.
        self._parents = np.zeros(0, np.int64)

    def new(self, count):
        """Ids of `count` new classes, an int array."""
        ids = len(self._parents) + np.arange(count)
        self._parents = np.concatenate([self._parents, ids])
        return ids

    def unite(self, left, right):
        """Puts each id of one array into the class of its partner in another."""
        while True:
            left, right = self._roots(left), self._roots(right)
            low, high = np.minimum(left, right), np.maximum(left, right)
            if (low == high).all():
                return
            # A root with several partners takes the lowest; the next round has those
            # that are still apart.
            np.minimum.at(self._parents, high, low)

    def classes(self):
        """Class of every id, an int array: 0, 1, 2, ... in the order of the ids."""
        roots = self._roots(np.arange(len(self._parents)))
        return np.unique(roots, return_inverse=True)[1]

    def _roots(self, ids):
        while True:
            parents = self._parents[ids]
            if (parents == ids).all():
                return parents
            ids = parents
