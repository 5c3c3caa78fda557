"""Times of operators by container, from the table of measurements."""

import json
import pathlib

import numpy as np

from tfcompress.litert.lowering.reader import Reader

PATH = pathlib.Path(__file__).with_name("operator_costs.json")


# Weight of the formula alone, compared with measurements that weigh up to 1.
FORMULA_WEIGHT = 0.05


class CostTable:
    """Times of operators, by class of shapes, type of activations and container.

    A formula, fitted to measurements, is the sum of the sizes in `Reader.sizes`, each
    times a coefficient. It is corrected by what measured operators of similar sizes
    took relative to it. The times of INT4 and INT2 are those of FULLY_CONNECTED with
    all operators before it.

    Attributes:
        litert: str. Version of LiteRT that was measured.
        machine: str. Kind of processor that was measured.

    Args:
        path: file that `python -m benchmarks.devices.operator_costs` has written.
    """

    def __init__(self, path: pathlib.Path = PATH) -> None:
        content = json.loads(path.read_text())
        self.litert: str = content["litert"]
        self.machine: str = content["machine"]
        self._formulas = {
            (row["shape_class"], row["activations"], row["container"]): _Formula(row)
            for row in content["formulas"]
        }

    def time(self, reader: Reader, container: str, activations: str = "") -> float:
        """Returns the predicted time of an operator, in microseconds.

        Args:
            reader: the operator.
            container: "FLOAT32", "INT8", "INT4" or "INT2".
            activations: "float" or "int8"; the reader's own by default.
        """
        kind = activations or reader.activations
        return self._formulas[reader.shape_class, kind, container](reader.sizes)


class _Formula:
    def __init__(self, row: dict) -> None:
        self._coefficients = np.array(row["coefficients"])
        measured = np.array(row["measured"])
        sizes, times = measured[:, :-1], measured[:, -1]
        self._places = np.log2(sizes)
        self._corrections = np.log(times / (sizes @ self._coefficients))

    def __call__(self, sizes: np.ndarray) -> float:
        distances = np.square(self._places - np.log2(sizes)).sum(axis=1)
        weights = np.exp(-2 * distances)
        total = weights.sum() + FORMULA_WEIGHT
        correction = weights @ self._corrections / total
        return float(self._coefficients @ sizes * np.exp(correction))
