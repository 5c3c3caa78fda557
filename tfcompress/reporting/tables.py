"""Tables as plain text of a stable width."""

import io

from rich import box
from rich.console import Console

WIDTH = 120


def render(table):
    """A `rich` table as plain text: no colours, no terminal needed."""
    table.box = box.SIMPLE
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
