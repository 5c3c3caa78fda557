"""A recipe that is killed and started again."""

import os
import resource
import subprocess
import sys

import pytest

FLAGS = ["--float_epochs=2", "--epochs=3"]


def start_recipe(folder, largest_file=resource.RLIM_INFINITY):
    """Starts the recipe, on a disk that no larger file fits on."""
    most = (largest_file, resource.RLIM_INFINITY)
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.pruned_ternary", f"--output_dir={folder}"]
        + FLAGS,
        env={**os.environ, "TF_DETERMINISTIC_OPS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, most),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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


@pytest.mark.slow  # two minutes: three processes
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_with_room(tmp_path):
    start_recipe(tmp_path / "whole").communicate()
    full = start_recipe(tmp_path / "full", largest_file=40_000)
    output, _ = full.communicate()
    assert full.returncode == 1
    assert "No backup of epoch 1: File too large" in output
    assert "Traceback" not in output
    assert "pruned_ternary: " in output.splitlines()[-1]
    assert not list((tmp_path / "full").glob("*.keras"))
    again = start_recipe(tmp_path / "full")
    again.communicate()
    assert again.returncode == 0
    whole, resumed = (
        (tmp_path / folder / "model.tflite").read_bytes()
        for folder in ("whole", "full")
    )
    assert resumed == whole
