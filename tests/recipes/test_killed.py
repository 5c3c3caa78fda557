"""A recipe that is killed and started again."""

import os
import subprocess
import sys

import pytest

FLAGS = ["--float_epochs=2", "--epochs=3"]


def start_recipe(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.pruned_ternary", f"--output_dir={folder}"]
        + FLAGS,
        env={**os.environ, "TF_DETERMINISTIC_OPS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # two minutes: three processes
def test_a_killed_and_resumed_run_writes_the_tflite_of_a_whole_run(tmp_path):
    start_recipe(tmp_path / "whole").communicate()
    killed = start_recipe(tmp_path / "killed")
    for line in killed.stdout:
        if "Epoch 2/3" in line:
            killed.kill()
    assert killed.wait() < 0
    assert not (tmp_path / "killed" / "model.tflite").exists()
    start_recipe(tmp_path / "killed").communicate()
    whole, again = (
        (tmp_path / folder / "model.tflite").read_bytes()
        for folder in ("whole", "killed")
    )
    assert again == whole
