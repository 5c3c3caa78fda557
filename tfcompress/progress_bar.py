"""Progress bars of the library's own work, next to those of `fit`."""

import contextlib
import contextvars
import json
import os
import time
from collections.abc import Iterator

import keras

from tfcompress.compat import keras_private

# Seconds of work before a bar appears.
DELAY = 3.0

_verbosity: contextvars.ContextVar[str | int] = contextvars.ContextVar(
    "tfcompress_verbosity", default="auto"
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

    Work of less than `DELAY` seconds shows nothing. Neither do `verbose=0` and
    processes other than the first of several.

    Args:
        title: str. A few words that name the work, on a line of their own.
        total: int or None. Number of steps.

    Example:

    >>> with progress_bar("Reading samples", len(batches)) as bar:
    ...     for batch in batches:
    ...         bar.add(1)
    """
    verbose = _verbosity.get()
    verbose = 1 if verbose == "auto" else int(verbose)
    bar = ProgressBar(title, total, verbose if verbose and _is_chief() else 0)
    try:
        yield bar
    finally:
        bar.close()


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
        self._is_shown = False
        self._is_silent = not verbose
        self._bar = keras.utils.Progbar(total, verbose=verbose or 1, interval=0.2)

    def add(self, steps: int) -> None:
        """Counts steps that are done."""
        self.done += steps
        if self._is_silent or time.monotonic() - self._began < DELAY:
            return
        if not self._is_shown:
            # `fit` may have left its own bar without an end of line.
            print(f"\n{self.title}", flush=True)
            self._is_shown = True
        self._bar.update(self.done, finalize=False)

    def close(self) -> None:
        """Ends the line of the bar."""
        if self._is_shown:
            self._bar.update(self.done, finalize=True)


def _is_chief() -> bool:
    """Whether this process is the first, or the only one, of a training."""
    if keras.backend.backend() == "jax":
        return keras_private.process_index() == 0
    # TensorFlow describes several machines by this variable.
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = config.get("task", {})
    first = "chief" if "chief" in config.get("cluster", {}) else "worker"
    return not task or (task.get("type") == first and int(task.get("index", 0)) == 0)
