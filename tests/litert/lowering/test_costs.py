"""The table of measured times, and the containers that this runtime reads."""

import dataclasses
import importlib.metadata
import itertools
import json

import numpy as np
import pytest

from tests.litert.lowering.one_layer import OneLayer, made, random_input
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import NATIVE_BITS, kernel_tensor
from tfcompress.litert.lowering.costs import PATH, CostTable
from tfcompress.litert.lowering.reader import readers
from tfcompress.litert.runtime import Interpreter

LAYERS = {
    "CONV_2D": OneLayer("CONV_2D", (1, 6, 6, 16), 8, (3, 3)),
    "DEPTHWISE_CONV_2D": OneLayer("DEPTHWISE_CONV_2D", (1, 6, 6, 16), 16, (3, 3)),
    "FULLY_CONNECTED": OneLayer("FULLY_CONNECTED", (1, 16), 8),
}
CONTENT = json.loads(PATH.read_text())


def output(layer, bits):
    """Output with a kernel of some bits, None if the runtime refuses the file."""
    model, found = made(layer)
    (graph,) = model.subgraphs
    if not layer.decoded:
        kernel = graph.operators[0].inputs[1]
        graph.tensors[kernel] = kernel_tensor(model, found.in_container(bits))
    try:
        runner = Interpreter(model_content=flatbuffer.write(model))
        runner.allocate_tensors()
        runner.set_tensor(runner.get_input_details()[0]["index"], random_input(layer))
        runner.invoke()
    except (RuntimeError, ValueError):
        return None
    return runner.get_tensor(runner.get_output_details()[0]["index"])


@pytest.mark.parametrize("operator", NATIVE_BITS)
def test_runtime_reads_the_containers_of_the_table(operator):
    for bits in (2, 4, 8):
        layer = dataclasses.replace(LAYERS[operator], bits=bits, int8=False)
        expected = output(dataclasses.replace(layer, decoded=True), bits)
        received = output(layer, bits)
        is_right = received is not None and np.allclose(
            received, expected, rtol=0, atol=0.02 * np.abs(expected).max()
        )
        if bits in NATIVE_BITS[operator]:
            assert is_right, bits
        elif (operator, bits) != ("CONV_2D", 4):  # right, and as slow as float
            assert not is_right, f"{bits} bits work now: they belong into NATIVE_BITS"


def test_cost_table_was_measured_with_the_installed_runtime():
    # Otherwise run `python -m benchmarks.devices.operator_costs`, and read its table.
    assert CostTable().litert == importlib.metadata.version("ai-edge-litert")


@pytest.mark.parametrize("row", CONTENT["formulas"], ids=lambda row: row["container"])
def test_cost_table_has_formulas_that_fit_their_measurements(row):
    measured = np.array(row["measured"])
    assert (np.array(row["coefficients"]) >= 0).all()
    assert row["error"] < 0.2
    assert len(measured) >= 8


def test_cost_table_has_a_time_for_every_container_of_every_class():
    table = CostTable()
    convolution = LAYERS["CONV_2D"]
    layers = [
        convolution,
        dataclasses.replace(convolution, window=(1, 1)),
        dataclasses.replace(convolution, window=(1, 1), stride=(2, 2)),
        *LAYERS.values(),
    ]
    for layer, int8 in itertools.product(layers, (False, True)):
        layer = dataclasses.replace(layer, int8=int8)
        model, _ = made(layer)
        (reader,) = readers(model, model.subgraphs[0], {})
        containers = ["INT8", "INT4", "INT2"]
        if layer.operator == "DEPTHWISE_CONV_2D":
            containers = ["INT8"]
        for container in containers:
            assert table.time(reader, container) > 0
        assert table.time(reader, "FLOAT32", "float") > 0


def test_cost_table_returns_about_what_was_measured():
    table = CostTable()
    layer = OneLayer("CONV_2D", (1, 14, 14, 256), 256, (3, 3))  # one of the measured
    model, _ = made(layer)
    (reader,) = readers(model, model.subgraphs[0], {})
    rows = [
        row
        for formula in CONTENT["formulas"]
        for row in formula["measured"]
        if (formula["shape_class"], formula["activations"]) == ("window", "int8")
        and formula["container"] == "INT4"
    ]
    (measured,) = [row[-1] for row in rows if row[:-1] == reader.sizes.tolist()]
    assert table.time(reader, "INT4") == pytest.approx(measured, rel=0.05)
