"""States of recipes' trainings: damaged files, full disks, two runs in one folder."""

import errno
import json
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from recipes.common.history import History
from recipes.common.saving.backup import KEPT, Backup
from recipes.common.saving.files import (
    LOCK,
    FolderLock,
    ends_in_one_line,
    write_whole,
    written_whole,
)
from recipes.common.train import UnfinishedRun

X, Y = np.eye(8, 4, dtype="float32"), np.ones((8, 3), "float32")


def new_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def fit(folder, epochs, *callbacks):
    """Trains up to an epoch, from the state in a folder, and returns the model."""
    model, backup = new_model(), Backup(folder)
    model.fit(
        X,
        Y,
        shuffle=False,
        epochs=epochs,
        initial_epoch=backup.restore(model),
        callbacks=[*callbacks, backup],
        verbose=0,
    )
    return model


def check_equal(model, expected):
    pairs = [*model.weights, *model.optimizer.variables]
    for received, wanted in zip(
        pairs, [*expected.weights, *expected.optimizer.variables], strict=True
    ):
        np.testing.assert_array_equal(received, wanted, err_msg=wanted.path)


def states(folder):
    return sorted(folder.glob("epoch_*"))


def test_backup_continues_a_training_with_the_state_of_its_optimizer(tmp_path):
    fit(tmp_path / "backup", 3)
    assert len(states(tmp_path / "backup")) == KEPT
    check_equal(fit(tmp_path / "backup", 5), fit(tmp_path / "whole", 5))


@pytest.mark.parametrize(
    "damage, count", [("cut", 1), ("empty", KEPT), ("flipped", 1), ("flipped", KEPT)]
)
def test_backup_goes_on_from_the_last_whole_state_and_says_so(
    damage, count, tmp_path, capsys
):
    folder = tmp_path / "backup"
    fit(folder, 3)
    for path in states(folder)[-count:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        cut = {"cut": content[: len(content) // 2], "empty": b"", "flipped": content}
        path.write_bytes(cut[damage])
    check_equal(fit(folder, 5), fit(tmp_path / "whole", 5))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count
    assert lines[0].startswith("A backup of epoch 3 is damaged and skipped:")


def test_backup_ignores_a_state_that_was_not_renamed(tmp_path):
    folder = tmp_path / "backup"
    fit(folder, 3)
    (folder / f"new_{states(folder)[-1].name}").write_bytes(b"half")
    check_equal(fit(folder, 5), fit(tmp_path / "whole", 5))


class FullDisk(keras.callbacks.Callback):
    """Limits the size of files from the end of an epoch on, as a full disk does."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, most))

    def on_train_end(self, logs=None):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_backup_on_a_full_disk_keeps_the_state_before_and_trains_on(tmp_path, capsys):
    folder = tmp_path / "backup"
    whole = fit(tmp_path / "whole", 4)
    check_equal(fit(folder, 4, FullDisk(2)), whole)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("No backup of epoch 3: ")
    assert [x.name[:8] for x in sorted(folder.iterdir())] == ["epoch_1_", "epoch_2_"]
    check_equal(fit(folder, 4), whole)


def test_whole_models_on_a_full_disk_end_in_an_error_and_those_before_stay(tmp_path):
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    full, model = FullDisk(epoch=0), new_model()
    try:
        with pytest.raises(OSError, match="File too large"):
            model.fit(X, Y, shuffle=False, epochs=2, callbacks=[save, full], verbose=0)
    finally:
        full.on_train_end()
    model = keras.models.load_model(tmp_path / "1.keras")
    model.fit(X, Y, shuffle=False, epochs=5, initial_epoch=1, verbose=0)
    check_equal(model, fit(tmp_path / "whole", 5))


def test_file_that_cannot_be_written_is_as_before(tmp_path):
    path = tmp_path / "model.keras"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="no room"), written_whole(path) as aside:
        aside.write_bytes(b"half")
        raise OSError("no room")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_full_disk_ends_a_recipe_in_one_line():
    class Experiment:
        recipe = "pruned_ternary"

        @ends_in_one_line
        def write(self, number):
            raise OSError(number, os.strerror(number), "model.tflite")

    with pytest.raises(SystemExit, match="^pruned_ternary: .*No space left.*again"):
        Experiment().write(errno.ENOSPC)
    with pytest.raises(PermissionError):
        Experiment().write(errno.EACCES)


class Losses(History):
    def state(self):
        return {"epochs": len(self.epochs)}

    def describe(self, state):
        return ""


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe"])
def test_damaged_history_is_left_out_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "sizes.json"
    path.write_bytes(content)
    fit(tmp_path / "backup", 2, Losses(path))
    assert len(json.loads(path.read_bytes())) == 2
    output = capsys.readouterr().out
    assert output.count("The history of the search is damaged and skipped") == 1


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"epochs"'])
def test_damaged_settings_of_an_unfinished_run_start_it_anew(content, tmp_path):
    UnfinishedRun(tmp_path / "run", {"epochs": 2})
    (tmp_path / "run" / "settings.json").write_bytes(content)
    (tmp_path / "run" / "state").touch()
    UnfinishedRun(tmp_path / "run", {"epochs": 2})
    assert not (tmp_path / "run" / "state").exists()


HOLD = """
import pathlib, sys
from recipes.common.saving.files import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
input()
"""


def test_folder_has_one_run_at_a_time_and_none_after_a_kill(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"which process {other.pid} writes to"):
        FolderLock(tmp_path)
    other.kill()
    other.communicate()
    assert (tmp_path / LOCK).exists()
    FolderLock(tmp_path).release()
    assert not (tmp_path / LOCK).exists()
