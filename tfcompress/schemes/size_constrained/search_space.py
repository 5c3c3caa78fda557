"""The parts of a student that a size-constrained search reads and sets."""

from collections.abc import Sequence

import keras

from tfcompress.schemes.size_constrained.admm import Admm
from tfcompress.schemes.size_constrained.allocation import Allocation
from tfcompress.schemes.size_constrained.budget import SizeBudget
from tfcompress.schemes.size_constrained.codebooks import Codebooks


class SizeSpace:
    """Codebooks of a student, their ADMM, and the allocation of a budget to them.

    Attributes:
        codebooks: `Codebooks` of the student.
        admm: `Admm` of its kernels.
        allocation: `Allocation` of the last `set_budget`; there is none before.

    Args:
        student: Functional model.
        codebook: str. "uniform" or "kmeans".
        bit_widths: sequence of int. Bits of a code to choose from, ascending.
    """

    allocation: Allocation

    def __init__(
        self, student: keras.Model, codebook: str, bit_widths: Sequence[int]
    ) -> None:
        self.codebooks = Codebooks(student, codebook, bit_widths)
        self.admm = Admm(self.codebooks)

    def set_budget(self, budget: SizeBudget) -> None:
        """Replaces the allocation by one of another budget; codebooks stay."""
        self.allocation = Allocation(self.codebooks, budget)

    def start(self) -> None:
        """Sets masks and bits for the budget, V = W and U = 0."""
        self.codebooks.begin()
        self.allocation.start()
        self.admm.start()

    def is_frozen(self) -> bool:
        """Whether zeros and bits are frozen; see `Codebooks.is_frozen`."""
        return self.codebooks.is_frozen()
