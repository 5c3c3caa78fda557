"""Paths of an export, and the files that killed and refused exports leave."""

import os
import signal
import subprocess
import sys

import pytest

from tfcompress.litert import export, exporter


def test_export_refuses_special_files_and_leaves_them(digit_model, tmp_path):
    pipe = tmp_path / "pipe.tflite"
    os.mkfifo(pipe)
    link = tmp_path / "null.tflite"
    link.symlink_to(os.devnull)
    for path in (pipe, link, os.devnull):
        with pytest.raises(OSError, match="regular file.*special file"):
            export(digit_model, path)
    assert pipe.is_fifo() and link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["null.tflite", "pipe.tflite"]


def test_export_takes_paths_as_bytes(digit_model, tmp_path):
    export(digit_model, os.fsencode(tmp_path / "model.tflite"))
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_export_refuses_what_is_no_path(digit_model):
    for path in ("", b""):
        with pytest.raises(ValueError, match="should name a file.*an empty path"):
            export(digit_model, path)
    with pytest.raises(TypeError, match="expected str, bytes or os.PathLike"):
        export(digit_model, None)


KILLED = """
import os, signal, sys
from tfcompress.litert.proof.output import replaced_when_done
with replaced_when_done(sys.argv[1]) as temporary:
    open(temporary, "wb").write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_export_removes_what_a_killed_export_to_its_path_left(digit_model, tmp_path):
    path = tmp_path / "model[1].tflite"  # with characters that patterns use
    killed = subprocess.run([sys.executable, "-c", KILLED, path])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    other, running = f"{path}.notes.tmp", f"{path}.1.tmp"
    for kept in (other, running):
        open(kept, "wb").close()
    export(digit_model, path)
    assert set(os.listdir(tmp_path)) == {
        os.path.basename(x) for x in (path, other, running)
    }


def test_export_keeps_a_refused_file_and_names_it(digit_model, tmp_path, monkeypatch):
    def refuse(*args):
        raise ValueError("It does not predict like Keras.")

    monkeypatch.setattr(exporter, "compare", refuse)
    path = tmp_path / "model.tflite"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"like Keras\. '.*model\.refused\.tflite'"):
        export(digit_model, path)
    assert path.read_bytes() == b"before"
    assert (tmp_path / "model.refused.tflite").read_bytes()[4:8] == b"TFL3"
