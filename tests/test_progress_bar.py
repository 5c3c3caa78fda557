"""Progress bars of the library's own work."""

import json

import pytest

from tfcompress import progress_bar as module
from tfcompress.progress_bar import progress_bar, verbosity


@pytest.fixture
def output(monkeypatch, capsys):
    """Function that returns the output of three steps, as if each took a second."""
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))

    def run(steps=3, **kwargs):
        with progress_bar("Reading samples", steps) as bar:
            for _ in range(steps):
                bar.add(1)
        return capsys.readouterr().out

    return run


def test_bar_appears_after_three_seconds_with_its_title(output):
    assert output(steps=2) == ""
    text = output(steps=4)
    assert text.startswith("\nReading samples\n")
    assert "2/4" not in text and "3/4" in text and "4/4" in text
    assert text.endswith("\n")


def test_bar_is_silent_if_fit_is(output):
    with verbosity(0):
        assert output(steps=9) == ""
    with verbosity(2):
        assert "9/9" in output(steps=9)
    assert "9/9" in output(steps=9)


@pytest.mark.parametrize("index", [0, 1])
def test_bar_is_silent_but_in_the_first_process(index, output, monkeypatch):
    cluster = {"worker": ["host0:1", "host1:1"]}
    task = {"type": "worker", "index": index}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    monkeypatch.setattr(module.keras_private, "process_index", lambda: index)  # JAX
    assert bool(output(steps=9)) == (index == 0)


def test_bar_ends_its_line_if_the_work_ends_early(capsys, monkeypatch):
    monkeypatch.setattr(module, "DELAY", 0.0)
    with progress_bar("Reading samples", 10) as bar:
        bar.add(1)
    assert "1/10" in (text := capsys.readouterr().out) and text.endswith("\n")
