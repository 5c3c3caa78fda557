"""Process of the runtime: errors of files, and of the process itself."""

import numpy as np
import pytest
from keras import layers as kl

from tests.micro.test_rewrite import made
from tfcompress.litert import flatbuffer
from tfcompress.micro.arena import least_arena
from tfcompress.micro.runtime import MicroError, MicroRunner, MicroRuntime
from tfcompress.quantizers.packing import packed_bytes


@pytest.fixture(scope="module")
def net():
    return made((8, 8, 3), [kl.Conv2D(8, 3), kl.Flatten(), kl.Dense(5)], (8,))


def test_runner_returns_floats_and_codes_of_each_sample(runtime, net):
    model, samples, plain = net
    (batch,) = samples
    runner = MicroRunner(runtime, plain, "net")
    (outputs,) = runner(batch)
    assert runner.codes[0].dtype == np.int8 and runner.codes[0].shape == (6, 5)
    expected = np.array(model(batch[0]))
    assert np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()


def test_least_arena_is_the_smallest_in_which_a_file_runs(runtime, net):
    *_, plain = net
    arena = least_arena(runtime, plain)
    assert arena % 16 == 0
    assert runtime("fits", plain, arena) and not runtime("fits", plain, arena - 16)


def test_operator_that_is_refused_is_found(runtime, net):
    *_, plain = net
    model = flatbuffer.read(plain)
    (graph,) = model.subgraphs
    place = len(graph.operators) - 1
    kernel = graph.tensors[graph.operators[place].inputs[1]]
    kernel.type = flatbuffer.TENSOR_TYPES[4]  # not with one scale per channel
    buffer = model.buffers[kernel.buffer]
    buffer.data = buffer.data[: packed_bytes(len(buffer.data), 4)]
    with pytest.raises(MicroError, match="failed to prepare") as error:
        MicroRunner(runtime, flatbuffer.write(model), "wrong")
    assert error.value.operator() == place


def test_end_of_the_process_is_an_error(net):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    *_, plain = net
    with MicroRuntime() as runtime:
        # An arena of 300 bytes ends it, if not by an error of its own.
        with pytest.raises(MicroError, match="fails|ended its process with code"):
            runtime("load", "net", plain, 300)
        runtime._process.kill()
        with pytest.raises(MicroError, match="ended its process with code"):
            runtime("load", "net", plain, 100_000)
