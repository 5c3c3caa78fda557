"""Tables as plain text of a fixed width."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120


def render(table: Table) -> str:
    """Returns a `rich` table as plain text, without colors or a terminal."""
    table.box = box.SIMPLE
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
