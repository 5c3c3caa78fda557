"""File that an export writes: whole and proven, or as it was before."""

import contextlib
import glob
import os
import re
from collections.abc import Iterator

# Ending of the name of a file that was written and did not pass its proof.
REFUSED = ".refused.tflite"


def output_path(path: str | bytes | os.PathLike) -> str:
    """Returns the path of a file to write, as text.

    Args:
        path: path of the file.

    Raises:
        TypeError: if it is no path.
        ValueError: if it is empty.
        OSError: if it is a directory, or a special file such as a pipe or a device.
    """
    path = os.fsdecode(path)
    if not path:
        raise ValueError("`path` should name a file. Received: an empty path.")
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"`path` should name a file. Received: '{path}', a directory."
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(
            "`path` should name a regular file, or one that is not there yet. "
            f"Received: '{path}', a pipe, a device or another special file. Export to "
            "a file and copy it there."
        )
    return path


@contextlib.contextmanager
def replaced_when_done(path: str) -> Iterator[str]:
    """Yields a temporary path; moves the file to `path` unless an error is raised.

    Temporary files of killed exports to that path are removed first.

    Args:
        path: result of `output_path`.

    Raises:
        OSError: if files cannot be written there.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        open(temporary, "wb").close()
    except OSError as error:
        raise type(error)(
            error.errno,
            "`path` should be writable, in a directory that exists. Received: "
            f"'{path}', {error.strerror}",
        ) from error
    try:
        _remove_abandoned(path)
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def kept_if_refused(temporary: str, path: str) -> Iterator[None]:
    """Keeps a written file at another path if a `with` statement refuses it.

    Args:
        temporary: path of the written file.
        path: path that it was meant for.

    Raises:
        ValueError: in place of one that is raised, with the path of the kept file.
    """
    try:
        yield
    except ValueError as error:
        refused = f"{path.removesuffix('.tflite')}{REFUSED}"
        os.replace(temporary, refused)
        raise ValueError(
            f"{error} '{path}' is unchanged. The refused file is kept as '{refused}'."
        ) from error


def _remove_abandoned(path):
    """Removes temporary files whose process has ended."""
    for found in glob.glob(f"{glob.escape(path)}.*.tmp"):
        number = re.fullmatch(r"\.(\d+)\.tmp", found[len(path) :])
        if number and not _is_running(int(number[1])):
            with contextlib.suppress(OSError):
                os.remove(found)


def _is_running(pid):
    if os.name != "posix":  # elsewhere the call below would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # one of another user
        return True
    return True
