"""Progress bars of the library's own work, next to those of `fit`.

`fit` sets their verbosity. Everywhere else there are none if the user has called
`keras.config.disable_interactive_logging`.
"""

import contextlib
import contextvars
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import keras

from tfcompress.compat import keras_private

# Seconds of work before a bar appears.
DELAY = 3.0

_Item = TypeVar("_Item")
_verbosity: contextvars.ContextVar[str | int] = contextvars.ContextVar(
    "tfcompress_verbosity", default="auto"
)
# Titles of the present work, from the outside in.
_titles: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "tfcompress_titles", default=()
)


@contextlib.contextmanager
def verbosity(verbose: str | int) -> Iterator[None]:
    """Sets the verbosity of all progress bars within a `with` statement.

    Args:
        verbose: argument of `keras.Model.fit`: 0 for none, 1 for a bar, 2 for a line,
            "auto" for a bar.
    """
    token = _verbosity.set(verbose)
    try:
        yield
    finally:
        _verbosity.reset(token)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None) -> Iterator["ProgressBar"]:
    """Shows a Keras progress bar if the work in a `with` statement takes long.

    Work of less than `DELAY` seconds shows nothing. Neither do `verbose=0`, disabled
    interactive logging, and processes other than the first of several. Longer work
    shows its title as soon as `DELAY` seconds have passed, and the bar after each step.

    A bar within the work of another one appears below its title, unless both have the
    same.

    Args:
        title: str. A few words that name the work, on a line of their own.
        total: int or None. Number of steps.

    Example:

    >>> with progress_bar("Reading samples", len(batches)) as bar:
    ...     for batch in bar.over(batches):
    ...         read(batch)
    """
    verbose = _verbosity.get()
    verbose = 1 if verbose == "auto" else int(verbose)
    # Not asked in the thread of the timer, which has a setting of its own.
    is_interactive = keras.config.is_interactive_logging_enabled()
    if title in _titles.get() or not is_interactive or not _is_chief():
        verbose = 0
    bar = ProgressBar(title, total, verbose)
    token = _titles.set((*_titles.get(), title))
    try:
        yield bar
    finally:
        _titles.reset(token)
        bar.close()


@contextlib.contextmanager
def announced(title: str) -> Iterator[None]:
    """Shows the title of work without steps if it takes long, and its time at the end.

    Args:
        title: str. A few words that name the work in a `with` statement.
    """
    with progress_bar(title, 1) as bar:
        yield
        bar.add(1)


class ProgressBar:
    """Progress bar that appears after `DELAY` seconds; see `progress_bar`.

    Args:
        title: str. Line before the bar.
        total: int or None. Number of steps.
        verbose: int. 0, 1 or 2, as in `fit`.
    """

    def __init__(self, title: str, total: int | None, verbose: int) -> None:
        self.title = title
        self.done = 0
        self._began = time.monotonic()
        self._is_shown = self._is_closed = False
        self._is_silent = not verbose
        self._bar = keras.utils.Progbar(total, verbose=verbose or 1, interval=0.2)
        # A single step may take minutes, so that only a timer can show the title.
        self._lock = threading.Lock()
        self._timer = threading.Timer(DELAY, self._show)
        self._timer.daemon = True
        if verbose:
            self._timer.start()

    def add(self, steps: int) -> None:
        """Counts steps that are done."""
        self.done += steps
        if self._is_silent or time.monotonic() - self._began < DELAY:
            return
        self._show()
        self._bar.update(self.done, finalize=False)

    def over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields items, and counts a step after each."""
        for item in items:
            yield item
            self.add(1)

    def close(self) -> None:
        """Ends the line of the bar."""
        self._timer.cancel()
        with self._lock:
            self._is_closed = True
        if self._is_shown:
            self._bar.update(self.done, finalize=True)

    def _show(self):
        with self._lock:
            if not self._is_shown and not self._is_closed:
                self._is_shown = True
                # `fit` may have left its own bar without an end of line.
                keras_private.print_message(f"\n{self.title}")


def _is_chief() -> bool:
    """Whether this process is the first, or the only one, of a training."""
    if keras.backend.backend() == "jax":
        return keras_private.process_index() == 0
    # TensorFlow describes several machines by this variable.
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = config.get("task", {})
    first = "chief" if "chief" in config.get("cluster", {}) else "worker"
    return not task or (task.get("type") == first and int(task.get("index", 0)) == 0)
