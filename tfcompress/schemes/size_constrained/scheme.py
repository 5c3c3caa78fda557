"""One number, the size, as a scheme."""

import warnings

import keras
import numpy as np

from tfcompress.core.budget import parse_budget
from tfcompress.core.compress import compress
from tfcompress.core.config import QuantizeConfig
from tfcompress.core.finalize import finalize
from tfcompress.core.scheme import SearchingScheme
from tfcompress.cost import layer_costs, total_cost
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.quantizers import Codebook
from tfcompress.schemes.size_constrained.budget import (
    SizeBudget,
    estimated_size,
    parse_size,
)
from tfcompress.schemes.size_constrained.search import SizeSearch
from tfcompress.schemes.size_constrained.search_space import SizeSpace

BIT_WIDTHS = {
    ("uniform", True): (2, 3, 4, 5, 6, 7, 8),
    ("uniform", False): (2, 4, 8),
    ("kmeans", True): (1, 2, 3, 4, 5, 6, 7, 8),
}


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class SizeConstrained(SearchingScheme):
    """Zeros and bits of every layer under one size (arXiv 1910.05897).

    The first part of a `fit` finds both. Where even five times the size does not pay
    for all weights, it begins with ADMM: kernels train in float and are drawn towards
    values that meet that looser size, which projections choose anew every epoch over
    all layers at once. Then kernels train quantized, and come down to the size step by
    step, zeros and bits of all layers chosen together. After that both stay, but for
    weights that go when the file would become too large, and the rest of the `fit`, or
    further ones, fine-tune. First and last layers are treated like all others; biases
    and batch normalization stay float.

    Args:
        size: of the finished `.tflite`: bytes, "100 kB", or a share of the float
            model's weights (4 bytes each) as text, such as "1/50".
        value_bits: the paper's count in place of a size: bits times non-zero weights,
            no positions, no biases. A number, or a share of 32 bits for each weight.
        codebook: "uniform", a zero-centred grid with one step per layer; or "kmeans",
            the paper's, with levels wherever weights are. Its levels are rounded to
            8-bit integers times one step, so that the file has what was trained; it is
            stored with 8 bits a weight and only small after compression.
        compression: what `size` is measured after: "xz", as downloads, app bundles and
            firmware images are packed; or "none", where zeros save nothing.
        rho: strength of ADMM's pull, in units of one over the sum of learning rates
            (the paper takes 0.05 for LeNet-5, 1e-3 for AlexNet, with SGD). None chooses
            it by the learning rates to come.
        search_fraction: share of the first `fit` that searches, in (0, 1].
        weight_decay, overrides: see `Scheme`.

    Example:

    >>> student = tfc.compress(model, tfc.SizeConstrained(size="100 kB"))
    """

    def __init__(
        self,
        size=None,
        value_bits=None,
        codebook="uniform",
        compression="xz",
        rho=None,
        search_fraction=0.5,
        weight_decay=1e-4,
        overrides=None,
    ):
        super().__init__(search_fraction, overrides, weight_decay)
        if (size is None) == (value_bits is None):
            raise ValueError(
                "One of `size` and `value_bits` is expected. Received: "
                f"size={size!r}, value_bits={value_bits!r}."
            )
        if value_bits is not None:
            parse_budget(value_bits, 1.0, "value_bits")
        else:
            parse_size(size, 1.0)
        if codebook not in ("uniform", "kmeans"):
            raise ValueError(
                f"`codebook` is 'uniform' or 'kmeans'. Received: codebook={codebook!r}."
            )
        if compression not in ("xz", "none"):
            raise ValueError(
                "`compression` is 'xz' or 'none'. Received: "
                f"compression={compression!r}."
            )
        if codebook == "kmeans" and compression == "none":
            raise ValueError(
                "A k-means codebook takes 8 bits a weight unless it is compressed. "
                "Received: codebook='kmeans', compression='none'. Take "
                "codebook='uniform'."
            )
        if rho is not None and not 0 <= rho < float("inf"):
            raise ValueError(f"`rho` is a finite number >= 0. Received: rho={rho}.")
        self.size = size
        self.value_bits = value_bits
        self.codebook = codebook
        self.compression = compression
        self.rho = rho
        self.config = QuantizeConfig(Codebook())

    def config_for(self, layer, place):
        return self.config

    def connect(self, student):
        widths = BIT_WIDTHS[self.codebook, self.compression == "xz"]
        student.size_space = SizeSpace(student, self.codebook, widths)
        student.size_space.connect()

    def check(self, model, plan):
        """Refuses a budget below the file whose kernels are as good as empty."""
        probe = compress(model, _Unchecked.from_config(self.get_config()))
        probe.size_space.empty()
        _vary_floats(probe)
        lowest, total = self._measured(probe), self.total(model)
        if not lowest <= total:
            unit = self.unit().replace("_", " ")
            raise ValueError(
                f"A budget of at least {lowest:,.0f} {unit} can be met. Received: "
                f"{self._received()}, {total:,.0f}. Ask for more, or make the model "
                "smaller first, as `tfcompress.Decomposition` does."
            )

    def prepare(self, student):
        """Starts the student at its budget."""
        student.size_space.empty()  # as `check` measures it
        student.size_space.budget = self._budget(student)
        student.size_space.start()

    def callbacks(self, student, recalibrate):
        student.size_space.budget = self._budget(student)
        return [
            SizeSearch(
                student.size_space,
                recalibrate,
                self.search_fraction,
                self.rho,
                self._measured,
            )
        ]

    def _budget(self, student):
        """The `SizeBudget`; what is no codes is measured."""
        budget = SizeBudget(self.total(student), self.unit(), self.codebook)
        if self.value_bits is None:
            coded = budget.size_of(student.size_space.codes())
            budget.overhead = self._measured(student) - coded
        return budget

    def _measured(self, student):
        """What the student's finished artefact takes, in the unit of the budget."""
        if self.value_bits is not None:
            counted = SizeBudget(0, "value_bits", self.codebook)
            return counted.size_of(student.size_space.codes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is fixed while it searches
            tiny = finalize(student)
        if keras.backend.backend() != "tensorflow":
            return estimated_size(tiny, self.compression == "xz")
        from tfcompress.litert import packed_size  # not at the top: it needs LiteRT

        return packed_size(tiny, self.compression == "xz")

    def unit(self):
        """What is counted: "value_bits", "xz_bytes" or "bytes"."""
        if self.value_bits is not None:
            return "value_bits"
        return {"xz": "xz_bytes", "none": "bytes"}[self.compression]

    def total(self, model):
        """The budget in that unit, for a float model or its student."""
        costs = total_cost(layer_costs(model))
        if self.value_bits is not None:
            bits = FLOAT_BITS * costs.weights
            return parse_budget(self.value_bits, bits, "value_bits")
        return parse_size(self.size, 4 * costs.params)

    def _received(self):
        if self.value_bits is not None:
            return f"value_bits={self.value_bits!r}"
        return f"size={self.size!r}"

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "value_bits": self.value_bits,
            "codebook": self.codebook,
            "compression": self.compression,
            "rho": self.rho,
        }


def _vary_floats(student):
    """Makes the float weights as hard to compress as trained ones."""
    rng = np.random.default_rng(0)
    kernels = {id(layer.latent_kernel) for layer in student.size_space.layers.values()}
    for variable in student.trainable_variables:
        if id(variable) not in kernels:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


class _Unchecked(SizeConstrained):
    """The same scheme, for a student that is only looked at."""

    def check(self, model, plan):
        pass

    def prepare(self, student):
        pass
