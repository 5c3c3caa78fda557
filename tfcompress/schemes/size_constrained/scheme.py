"""Scheme of zeros and bits under the size of the finished file."""

import functools
import importlib.util
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfcompress.arguments import check_number
from tfcompress.core.budget import parse_budget
from tfcompress.core.compress import compress
from tfcompress.core.config import KeepFloat, QuantizeConfig, learned_range_inputs
from tfcompress.core.finalize import inference_model
from tfcompress.core.scheme import Place, SearchingScheme
from tfcompress.core.student import Student
from tfcompress.core.tensor_ranges import BITS
from tfcompress.core.training.calibration import CalibrateActivations
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.cost import layer_costs, total_cost
from tfcompress.cost.arithmetic import FLOAT_BITS
from tfcompress.quantizers import Codebook
from tfcompress.schemes.size_constrained.budget import (
    SizeBudget,
    estimated_size,
    parse_size,
)
from tfcompress.schemes.size_constrained.limits import budget_of, check_limits
from tfcompress.schemes.size_constrained.search import SizeSearch
from tfcompress.schemes.size_constrained.search_space import SizeSpace

if TYPE_CHECKING:
    from tfcompress.core.plan import Plan

# Bits of a code to choose from, by codebook and by whether the size counts after xz.
BIT_WIDTHS = {
    ("uniform", True): (2, 3, 4, 5, 6, 7, 8),
    ("uniform", False): (2, 4, 8),
    ("kmeans", True): (1, 2, 3, 4, 5, 6, 7, 8),
}


@keras.saving.register_keras_serializable(package="tfcompress.schemes")
class SizeConstrained(SearchingScheme):
    """Scheme that learns zeros and bits of every layer under one size.

    Method: joint sparsity and quantization by ADMM (arXiv 1910.05897).

    The first part of a `fit` finds both. If five times the size does not pay for all
    weights, ADMM comes first: float kernels are drawn to values of that larger size,
    which projections over all layers update every epoch. Then kernels train quantized,
    with straight-through gradients. Their size comes down step by step, and each step
    chooses zeros and bits of all layers together.

    At the size zeros and bits freeze, and the rest of the `fit`, or further ones,
    fine-tune. Weights are still removed if the file would become too large. First and
    last layers are treated like all others. Biases and batch normalization stay float.
    Where the size counts after xz, scales and offsets of batch normalizations are
    rounded to bfloat16 by small changes of their statistics.

    The logs of each epoch have the size as "value_bits", "xz_bytes", "bytes" or
    "flash_bytes", in which the bytes of all but the codes are as last measured;
    "budget_ratio", the size divided by the budget; "sparsity" and "mean_weight_bits" of
    the codes; and "phase", 1 once the search has ended, else 0.

    Args:
        size: size of the finished `.tflite`: bytes, "100 kB", or a share of the float
            model's weights (4 bytes each) as text, such as "1/50".
        value_bits: the paper's count in place of a size: bits times non-zero weights,
            without positions and biases. A number, or a share of 32 bits per weight.
        codebook: str. "uniform": a zero-centered grid with one step per layer.
            "kmeans": the paper's codebook, whose levels are fitted to the weights and
            rounded to 8-bit integers times one step. A file stores them with 8 bits per
            weight, so that it is small only after compression.
        compression: str. "xz": `size` is measured after xz, as downloads, app bundles
            and firmware images are packed. "none": of the file as it is, where zeros
            save nothing. None is "xz", or "none" with target="micro".
        target: str. "litert", or "micro": `size` is the flash of the file that
            `tfcompress.export` writes with target="micro" and any arena. Zeros save
            bytes there, down to one bit a weight. Embeddings are left alone: their rows
            are INT8 in that file.
        rho: float from 0 to 1e6, or None. Penalty parameter of ADMM (in the paper 0.05
            for LeNet-5 and 1e-3 for AlexNet, with SGD). A step draws kernels by
            learning rate * rho. None takes 2 over the sum of the learning rates to come
            in ADMM.
        search_fraction: float in (0, 1]. Share of the first `fit` that searches.
        weight_decay, overrides: see `Scheme`.
        activation_bits: int, 2 to 8, or None. Bits of the input of each compressed
            layer, with learned ranges. None leaves activations float. With 8 all
            tensors that an int8 file stores have learned ranges, and that file computes
            what was trained.

    Raises:
        ValueError: if not one of `size` and `value_bits` is given, or an argument is
            out of range.

    Example:

    >>> student = tfc.compress(model, tfc.SizeConstrained(size="100 kB"))
    """

    def __init__(
        self,
        size: float | str | None = None,
        value_bits: float | str | None = None,
        codebook: str = "uniform",
        compression: str | None = None,
        rho: float | None = None,
        search_fraction: float = 0.5,
        weight_decay: float = 1e-4,
        overrides: Mapping[str, Any] | None = None,
        activation_bits: int | None = None,
        target: str = "litert",
    ) -> None:
        super().__init__(search_fraction, overrides, weight_decay)
        _check_budget(size, value_bits)
        _check_target(target, compression, value_bits)
        compression = compression or ("none" if target == "micro" else "xz")
        _check_codebook(codebook, compression, target)
        if rho is not None:
            check_number("rho", rho, "a number from 0 to 1e6", lambda x: 0 <= x <= 1e6)
        self.size: Any = size  # or None, and then `value_bits` is not
        self.value_bits: Any = value_bits
        self.codebook = codebook
        self.compression = compression
        self.target = target
        self.rho = rho
        self.activation_bits = activation_bits
        # By whether a layer's input is signed.
        self.configs = [
            QuantizeConfig(Codebook(), learned_range_inputs(activation_bits, signed))
            for signed in (False, True)
        ]

    def config_for(
        self, layer: keras.layers.Layer, place: Place
    ) -> QuantizeConfig | KeepFloat:
        if self.target == "micro" and type(layer) is keras.layers.Embedding:
            return KeepFloat("its rows are INT8 in flash, whatever their bits")
        return self.configs[place.signed_input]

    def learns_all_ranges(self) -> bool:
        return self.activation_bits == BITS

    def rounds_norms(self) -> bool:
        # Biases of int8 operators are whole numbers.
        return self.unit() == "xz_bytes" and not self.learns_all_ranges()

    def connect(self, student: Student) -> None:
        widths = self.widths()
        student.size_space = SizeSpace(student, self.codebook, widths)

    def check(self, model: keras.Model, plan: "Plan") -> None:
        """Refuses a budget below the smallest size, and warns above the largest.

        Files are only made where the estimated sizes are close to the budget.

        Raises:
            ValueError: if the budget cannot be met.

        Warns:
            UserWarning: if it is larger than the model with the most bits.
        """
        coded = [
            row.layer
            for row in plan.treated()
            if isinstance(row.config.kernel_quantizer, Codebook)
        ]
        if self.target == "micro":
            _check_quantizer()
        check_limits(self, model, coded)

    def probe(self, model: keras.Model) -> Student:
        """Returns a student whose size alone is measured."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's `compress` has them too
            return compress(model, _Unchecked.from_config(self.get_config()))

    def check_finished(self, student: Student) -> None:
        if student.size_space.codebooks.is_over_budget():
            raise ValueError(
                f"A student within {self.received()} is expected. Received: one whose "
                "training could not meet it, with the fewest weights and bits. "
                "Compress `tfcompress.dequantize(student)` again with a larger size."
            )

    def prepare(self, student: Student) -> None:
        """Quantizes to 8 bits until the first search sets zeros and bits."""
        student.size_space.codebooks.set_preliminary()

    def callbacks(
        self, student: Student, recalibrate: Recalibration
    ) -> list[keras.callbacks.Callback]:
        space = student.size_space
        space.set_budget(budget_of(self, student, space.codebooks.layers.values()))
        size_of = functools.partial(self.size_of, student)
        return [
            CalibrateActivations(recalibrate),
            SizeSearch(space, recalibrate, self.search_fraction, self.rho, size_of),
        ]

    def measure(self, student: Student) -> dict[str, float]:
        space = student.size_space
        codes, bits = space.codebooks.codes(), space.codebooks.bits
        sizes = {name: array.size for name, (array, _) in codes.items()}
        zeros = sum(np.count_nonzero(array == 0) for array, _ in codes.values())
        total = sum(sizes.values())
        weight_bits = sum(bits[name] * size for name, size in sizes.items())
        measured = {
            "phase": float(space.is_frozen()),
            "sparsity": float(zeros / total),
            "mean_weight_bits": float(weight_bits / total),
        }
        if hasattr(space, "allocation"):
            budget = space.allocation.budget
            size, total = budget.estimate_of(codes), budget.total  # as last measured
        elif self.value_bits is not None:
            size, total = self.size_of(student), self.total(student)
        else:  # a conversion would take long
            return measured
        measured[self.cost_name()] = float(size)
        measured["budget_ratio"] = float(size / total)
        return measured

    def cost_name(self) -> str:
        return self.unit()

    def widths(self) -> tuple[int, ...]:
        """Returns the bits of a code to choose from, ascending."""
        # Every width has an encoding in flash.
        of_any_width = self.compression == "xz" or self.target == "micro"
        return BIT_WIDTHS[self.codebook, of_any_width]

    def size_of(self, student: Student) -> float:
        """Returns the size of the finished artefact, in the unit of the budget."""
        if self.value_bits is not None:
            budget = SizeBudget(0, "value_bits", self.codebook)
            return budget.size_of(student.size_space.codebooks.codes())
        tiny = inference_model(student)
        if keras.backend.backend() != "tensorflow":
            return estimated_size(tiny, self.unit())
        # Not at the top: they need LiteRT.
        if self.target == "micro":
            from tfcompress.micro.exporter import flash_size

            return flash_size(tiny)
        from tfcompress.litert import packed_size

        return packed_size(tiny, self.compression == "xz")

    def unit(self) -> str:
        """Returns the unit of the budget.

        It is "value_bits", "xz_bytes", "bytes" or "flash_bytes".
        """
        if self.value_bits is not None:
            return "value_bits"
        if self.target == "micro":
            return "flash_bytes"
        return {"xz": "xz_bytes", "none": "bytes"}[self.compression]

    def total(self, model: keras.Model) -> float:
        """Returns the budget in that unit, for a float model or its student."""
        costs = total_cost(layer_costs(model))
        if self.value_bits is not None:
            bits = FLOAT_BITS * costs.weights
            return parse_budget(self.value_bits, bits, "value_bits")
        return parse_size(self.size, 4 * costs.params)

    def received(self) -> str:
        """Returns the argument that sets the budget, for errors."""
        if self.value_bits is not None:
            return f"value_bits={self.value_bits!r}"
        return f"size={self.size!r}"

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "value_bits": self.value_bits,
            "codebook": self.codebook,
            "compression": self.compression,
            "rho": self.rho,
            "activation_bits": self.activation_bits,
            "target": self.target,
        }


class _Unchecked(SizeConstrained):
    """The same scheme for a student whose size alone is measured."""

    def check(self, model: keras.Model, plan: "Plan") -> None:
        pass

    def prepare(self, student: Student) -> None:
        pass


def _check_budget(size, value_bits):
    if (size is None) == (value_bits is None):
        raise ValueError(
            "One of `size` and `value_bits` is expected. Received: "
            f"size={size!r}, value_bits={value_bits!r}."
        )
    if value_bits is not None:
        parse_budget(value_bits, 1.0, "value_bits")
    else:
        parse_size(size, 1.0)


def _check_target(target, compression, value_bits):
    if target not in ("litert", "micro"):
        raise ValueError(
            f"`target` is 'litert' or 'micro'. Received: target={target!r}."
        )
    if target == "micro" and (compression == "xz" or value_bits is not None):
        raise ValueError(
            "target='micro' is expected with `size`, of the file as it is. Received: "
            f"compression={compression!r}, value_bits={value_bits!r}."
        )


def _check_quantizer():
    is_measured = keras.backend.backend() == "tensorflow"
    if is_measured and importlib.util.find_spec("litert_quantizer") is None:
        raise ImportError(
            "SizeConstrained(target='micro') needs the package litert-quantizer, which "
            "makes the file that is measured. Install `tfcompress[int8]`."
        )


def _check_codebook(codebook, compression, target):
    if codebook not in ("uniform", "kmeans"):
        raise ValueError(
            f"`codebook` is 'uniform' or 'kmeans'. Received: codebook={codebook!r}."
        )
    if compression not in ("xz", "none"):
        raise ValueError(
            f"`compression` is 'xz' or 'none'. Received: compression={compression!r}."
        )
    if codebook == "kmeans" and (compression, target) == ("none", "litert"):
        raise ValueError(
            "A k-means codebook takes 8 bits a weight unless it is compressed. "
            "Received: codebook='kmeans', compression='none'. Take "
            "codebook='uniform'."
        )
