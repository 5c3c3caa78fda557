"""Contents of a `.tflite`: `python -m tfcompress.inspect model.tflite`.

The program prints kernels, biases and other large constants in running order, with
their shares of the file. With `--against float.tflite` it adds the bytes of the same
kernel in that file.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from tfcompress.cost.arithmetic import xz_bytes
from tfcompress.litert.contents import constants
from tfcompress.litert.runtime import read_file
from tfcompress.progress_bar import announced, verbosity
from tfcompress.reporting.tables import render

# Other constants with a smaller share of the file are summed up.
LEAST_SHARE = 0.001


def inspect(path: str | os.PathLike, against: str | os.PathLike | None = None) -> str:
    """Describes the contents of a `.tflite` as text.

    Args:
        path: path of the file.
        against: path of a file with the same graph, such as the float model's, or
            None.

    Returns:
        A string of lines no wider than 120 characters.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if one is no `.tflite` file, or a damaged one.
    """
    with announced(f"Contents of '{os.fspath(path)}'"):
        return _described(path, against)


def _described(path, against):
    size = os.path.getsize(path)
    rows = [
        row
        for row in constants(path)
        if row.role or row.bytes + row.scale_bytes >= LEAST_SHARE * size
    ]
    others = constants(against) if against else []
    table = Table(show_footer=True)
    table.add_column("tensor", "graph and all else", overflow="fold")
    for title in ("read by", "type", "shape"):
        table.add_column(title, no_wrap=True)
    rest = size - sum(row.bytes + row.scale_bytes for row in rows)
    footers = [("zeros", ""), ("bytes", f"{rest:,}"), ("scales", "")]
    footers.append(("of file", f"{rest / size:.1%}"))
    if against:
        footers += [("bytes there", ""), ("ratio", "")]
    for title, footer in footers:
        table.add_column(title, footer, justify="right", no_wrap=True)
    for row, other in zip(rows, _counterparts(rows, others), strict=True):
        cells = [
            _as_text(row.name or row.role),
            row.read_by,
            row.type,
            " x ".join(map(str, row.shape)),
            "" if row.zeros is None else f"{row.zeros:.1%}",
            f"{row.bytes:,}",
            f"{row.scale_bytes:,}" if row.scale_bytes else "",
            f"{(row.bytes + row.scale_bytes) / size:.1%}",
        ]
        if other is not None:
            cells += [f"{other.bytes:,}", f"{other.bytes / row.bytes:.1f}x"]
        table.add_row(*cells)
    return f"{render(table)}\n{render(_file_table(path, against))}"


def _as_text(name):
    """The name of a tensor, of which nothing is taken for markup or for commands."""
    return escape("".join(x if x.isprintable() else "?" for x in name))


def _counterparts(rows, others):
    """Returns each row's kernel in the other file, or None.

    Kernels are paired in order by operator and shape, as names differ between files.
    """
    kernels = [other for other in others if other.role == "kernel"]
    pairs = []
    for row in rows:
        key = (row.read_by, row.shape)
        found = None
        if row.role == "kernel":
            found = next((k for k in kernels if (k.read_by, k.shape) == key), None)
        if found is not None:
            kernels.remove(found)
        pairs.append(found)
    return pairs


def _file_table(path, against):
    table = Table("file")
    for title in ["bytes", "after xz"] + 2 * ["ratio"] * bool(against):
        table.add_column(title, justify="right")
    sizes = [_sizes(file) for file in (path, against) if file]
    for file, (size, compressed) in zip((path, against), sizes, strict=False):
        ratios = []
        if against:
            ratios = [f"{sizes[1][i] / (size, compressed)[i]:.2f}x" for i in (0, 1)]
        table.add_row(
            _as_text(os.path.basename(file)), f"{size:,}", f"{compressed:,}", *ratios
        )
    return table


def _sizes(file):
    content = read_file(file)
    return len(content), xz_bytes(content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; exits with a message if a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.inspect", description="Contents of a .tflite."
    )
    parser.add_argument("file", help="the .tflite to describe")
    parser.add_argument(
        "--against", metavar="FILE", help="a .tflite of the same graph to compare with"
    )
    options = parser.parse_args(arguments)
    # Another program may read the output.
    verbose = "auto" if sys.stdout.isatty() else 0
    try:
        with verbosity(verbose):
            print(inspect(options.file, options.against))
    except (OSError, ValueError) as error:
        sys.exit(f"inspect: {error}")


if __name__ == "__main__":
    main()
