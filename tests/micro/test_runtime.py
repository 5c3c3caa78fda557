"""Process of the runtime: errors of files, and of the process itself."""

import os
import signal

import numpy as np
import pytest
from keras import layers as kl

from tests.micro.test_rewrite import made
from tfcompress.litert import flatbuffer
from tfcompress.micro import runtime as micro_runtime
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


def hanging_in(task):
    """Source of a worker that never ends one task, and does all others."""
    return f"""
import pickle, sys, time
while True:
    name, _ = pickle.load(sys.stdin.buffer)
    while name == {task!r}:
        time.sleep(600)
    for message in (None, None, (True, "done")):
        pickle.dump(message, sys.stdout.buffer)
    sys.stdout.flush()
"""


def test_run_that_never_ends_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    worker = tmp_path / "worker.py"
    worker.write_text(hanging_in("hang"))
    monkeypatch.setattr(micro_runtime, "WORKER", worker)
    with MicroRuntime() as runtime:
        assert runtime("other") == "done"
        monkeypatch.setattr(micro_runtime, "PATIENCE", 0.1)
        with pytest.raises(MicroError, match="a run within 0.1 seconds. Export it"):
            runtime("hang")
        with pytest.raises(MicroError, match="ended its process with code -9"):
            runtime("other")


def test_copy_of_the_process_that_hangs_ends_with_it(net, monkeypatch):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    *_, plain = net
    with MicroRuntime() as runtime:
        assert runtime("fits", plain, 100_000)
        group = runtime._process.pid
        os.killpg(group, signal.SIGSTOP)  # as a run that never ends
        monkeypatch.setattr(micro_runtime, "PATIENCE", 0.1)
        with pytest.raises(MicroError, match="has not ended a run"):
            runtime("least_arena", plain, 100_000)
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


def test_each_step_of_long_work_is_told(net, monkeypatch):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    model, samples, plain = net
    with MicroRuntime() as runtime:
        MicroRunner(runtime, plain, "net")
        steps = []
        monkeypatch.setattr(runtime, "_said", Told(runtime._said, steps))
        runtime("milliseconds", ("net",), 7)
        assert steps == [None] * 7
        steps.clear()
        MicroRunner(runtime, plain, "net")(next(iter(samples)))
        assert steps == [None] * 6
        steps.clear()
        least_arena(runtime, plain)
        assert len(steps) > 10


class Told:
    """Queue that lists the messages before results."""

    def __init__(self, said, steps):
        self.said, self.steps, self.put = said, steps, said.put

    def get(self, timeout):
        message = self.said.get(timeout=timeout)
        if message is None:
            self.steps.append(message)
        return message
