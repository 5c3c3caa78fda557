"""Progress bars of the library's own work."""

import json
import threading

import keras
import pytest

from tfcompress import progress_bar as module
from tfcompress.progress_bar import announced, progress_bar, verbosity


@pytest.fixture
def clock(monkeypatch):
    """List of the seconds that have passed, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def output(clock, capsys):
    """Function that returns the output of steps, as if each took a second."""

    def run(steps=3):
        with progress_bar("Reading samples", steps) as bar:
            for _ in bar.over(range(steps)):
                clock[0] += 1.0
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


@pytest.fixture
def quiet():
    keras.config.disable_interactive_logging()
    yield
    keras.config.enable_interactive_logging()


def test_bar_is_silent_without_interactive_logging(output, quiet):
    assert output(steps=9) == ""


def waiting_timers():
    """The timers that are not canceled; the threads of others may still end."""
    timers = (x for x in threading.enumerate() if isinstance(x, threading.Timer))
    return [timer for timer in timers if not timer.finished.is_set()]


def test_timer_shows_nothing_without_interactive_logging(quiet):
    # The setting is one of the thread.
    with announced("Conversion"):
        assert not waiting_timers()


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


@pytest.mark.parametrize("seconds", [2.0, 60.0])
def test_work_without_steps_shows_its_title_and_its_time_if_it_is_long(
    seconds, clock, capsys
):
    with announced("Conversion"):
        clock[0] = seconds
    text = capsys.readouterr().out
    assert (text.startswith("\nConversion\n") and "1/1" in text) is (seconds > 3)
    assert bool(text) is (seconds > 3)


@pytest.fixture
def shown(monkeypatch):
    """Event that is set once a title is shown."""
    event = threading.Event()
    show = module.keras_private.print_message

    def show_and_tell(message):
        show(message)
        event.set()

    monkeypatch.setattr(module.keras_private, "print_message", show_and_tell)
    return event


def test_title_appears_while_a_single_step_lasts(shown, capsys, monkeypatch):
    monkeypatch.setattr(module, "DELAY", 0.01)
    with announced("Conversion"):
        assert shown.wait(60)
        assert capsys.readouterr().out == "\nConversion\n"
    assert "1/1" in capsys.readouterr().out


def test_failed_work_ends_the_line_of_its_title_and_counts_no_step(
    shown, capsys, monkeypatch
):
    monkeypatch.setattr(module, "DELAY", 0.01)
    with pytest.raises(KeyError), announced("Conversion"):
        shown.wait(60)
        raise KeyError
    text = capsys.readouterr().out
    assert "0/1" in text and text.endswith("\n")


def test_no_timer_is_left_after_short_work():
    with announced("Conversion"):
        (timer,) = waiting_timers()
    timer.join(60)
    assert not timer.is_alive()


def test_work_within_work_of_the_same_title_is_announced_once(clock, capsys):
    with announced("Compression"), announced("Plan"), announced("Compression"):
        clock[0] = 60.0
    text = capsys.readouterr().out
    assert text.count("Compression") == text.count("Plan") == 1
