"""Files that are whole or not there, and folders that one run writes to."""

import contextlib
import errno
import fcntl
import functools
import os
import sys

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def written_whole(path):
    """Gives a `with` statement a path to write to, and moves the file in the end.

    A file of that name stays as it is until then, and if the writing fails.

    Args:
        path: `pathlib.Path` of the file.
    """
    aside = path.with_name(f"new_{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:  # interruptions from the keyboard count
        aside.unlink(missing_ok=True)
        raise


def write_whole(path, content):
    """Writes bytes to a file that is whole or as before.

    Args:
        path: `pathlib.Path` of the file.
        content: bytes.
    """
    with written_whole(path) as aside:
        aside.write_bytes(content)


def ends_in_one_line(method):
    """Makes a method of an `Experiment` end the program in one line on a full disk."""

    @functools.wraps(method)
    def call(experiment, *args, **kwargs):
        try:
            return method(experiment, *args, **kwargs)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            sys.exit(
                f"{experiment.recipe}: {error}. Earlier files are intact. Make "
                "room, and start the recipe again: it continues where it stopped."
            )

    return call


class FolderLock:
    """Lock of a folder that one process at a time writes to.

    The system releases it when the process ends, however it ends.

    Args:
        folder: `pathlib.Path` of an existing folder.

    Raises:
        ValueError: if another process has the lock.
    """

    def __init__(self, folder):
        self._path = folder / LOCK
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            if error.errno not in _TAKEN:
                raise
            raise ValueError(
                "Expected --output_dir to be a folder that no other run writes to. "
                f"Received: {folder}, which process {owner or 'unknown'} writes to. "
                "Wait until it ends, or name another folder."
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self):
        """Ends the lock and removes its file."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)
