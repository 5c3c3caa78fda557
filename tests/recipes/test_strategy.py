"""Several devices: refused settings, and two processes that train one model."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from recipes import pruned_ternary
from recipes.common import strategy

# A recipe as `python -m` runs it, which also saves the weights of its worker.
WORKER = """
import sys
import numpy as np
from absl import app
from recipes import pruned_ternary
from recipes.common import run

class Experiment(run.Experiment):
    def finish(self):
        np.savez(sys.argv[0], *self.student.get_weights())
        super().finish()

pruned_ternary.Experiment = Experiment
sys.argv = sys.argv[1:]
app.run(pruned_ternary.main)
"""


def cluster(ports, index):
    return json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": index},
        }
    )


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [x.getsockname()[1] for x in sockets]
    for x in sockets:
        x.close()
    return ports


@pytest.mark.slow  # a minute: two processes start, trace and train
def test_two_workers_train_the_same_weights_and_the_chief_writes(tmp_path):
    out, ports = tmp_path / "out", free_ports(2)
    flags = ["--strategy=multi_worker", "--float_epochs=1", "--epochs=2"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / f"{index}.npz"), *flags]
            + [f"--output_dir={out}"],
            env={**os.environ, "TF_CONFIG": cluster(ports, index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=600)
        assert worker.returncode == 0, output
    first, second = (np.load(tmp_path / f"{index}.npz") for index in range(2))
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    assert {x.name for x in out.iterdir()} == {
        *("float.keras", "model.keras", "model.tflite", "report.json", "layers.png")
    }
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["litert"] > 0.8
    assert report["agreement"]["top1"] == 1.0


@pytest.mark.parametrize(
    "config", [None, "{", "{}", cluster([1, 2], 2), '{"cluster": {"worker": 3}}']
)
def test_a_wrong_TF_CONFIG_is_refused(config, tmp_path, run_recipe, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(SystemExit, match="^pruned_ternary: Expected TF_CONFIG to be"):
        run_recipe(pruned_ternary, tmp_path, strategy="multi_worker")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"strategy": "mirrored", "batch_size": 128},
            "evenly among 3 .* Received: 128",
        ),
        ({"strategy": "data_parallel"}, "Expected KERAS_BACKEND=jax"),
        ({"strategy": "tpu", "tpu": "nowhere"}, "can be reached.*no route to nowhere"),
    ],
)
def test_unavailable_devices_are_refused(
    flags, told, tmp_path, run_recipe, monkeypatch
):
    def unreachable(tpu):
        raise OSError(f"no route to {tpu}")

    monkeypatch.setitem(strategy._MAKERS, "mirrored", lambda: strategy.Devices(3))
    resolvers = strategy.tf.distribute.cluster_resolver
    monkeypatch.setattr(resolvers, "TPUClusterResolver", unreachable)
    with pytest.raises(SystemExit, match=told):
        run_recipe(pruned_ternary, tmp_path, **flags)


@pytest.mark.slow
def test_a_mirrored_run_on_two_cpus_exports_what_it_trained(
    tmp_path, run_recipe, few_images, check_report, two_replicas, monkeypatch
):
    tfd = strategy.tf.distribute
    monkeypatch.setattr(tfd, "MirroredStrategy", lambda: two_replicas)
    run_recipe(
        pruned_ternary,
        tmp_path,
        model="small",
        strategy="mirrored",
        epochs=1,
        float_epochs=1,
        batch_size=64,
    )
    assert check_report(tmp_path)["agreement"]["top1"] == 1.0
