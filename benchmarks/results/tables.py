"""Markdown tables of `docs/results.md`, from the committed reports."""

import shlex
from collections.abc import Callable, Sequence
from fractions import Fraction

from benchmarks.results.rows import Row, rows_of
from benchmarks.results.run import NETWORKS, Places, flag_arguments

_MARK = " †"


def _accuracy(key):
    return lambda row: _mean(row, lambda report: 100 * report["accuracy"][key], 2)


def _mean(row, value, digits):
    """The mean over the seeds, with the standard deviation where there are several."""
    text = f"{row.mean(value):,.{digits}f}"
    if len(row.reports) > 1:
        text += f" ± {row.spread(value):,.{digits}f}"
    return text


def _kilobytes(key):
    return lambda row: f"{row.mean(lambda x: x['size'][key]) / 1000:,.1f}"


def _share(key):
    def cell(row):
        ratio = row.mean(lambda x: x["cost"][f"float_{key}"] / x["cost"][key])
        return f"1/{ratio:.1f}"

    return cell


def _relative(key, before, after):
    return lambda row: f"{row.mean(lambda x: x[key][after] / x[key][before]):.2f}"


def _arena(row):
    if any("memory" not in report for report in row.reports):
        return ""
    return _relative("memory", "float_arena_bytes", "arena_bytes")(row)


def _macs(row):
    return f"{row.mean(lambda x: x['cost']['macs'] / x['cost']['float_macs']):.3f}"


def _value_bits(row):
    budget = row.reports[0]["budget"]
    if budget is None or budget["kind"] != "value_bits":
        return ""
    share = float(Fraction(row.run.flags["value_bits"]))
    ratio = row.mean(lambda x: x["budget"]["requested"] / x["budget"]["achieved"])
    return f"1/{ratio / share:,.0f}"


def _bits(row):
    layers = [layer for report in row.reports for layer in report["layers"]]
    bits = [layer["weight_bits"] for layer in layers if layer["weight_bits"]]
    lowest, highest = min(bits), max(bits)
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"


def _epochs(row):
    distilled = ", distilled" if row.run.flags.get("distill") else ""
    return f"{row.run.epochs}{distilled}"


def _network(row):
    return NETWORKS[row.run.network].title


def _name(row):
    return f"`{row.name}`{_MARK if row.run.past else ''}"


Column = tuple[str, Callable[[Row], str]]
_START: list[Column] = [
    ("network, data", _network),
    ("method", lambda row: row.method),
    ("budget", lambda row: row.budget),
    ("epochs", _epochs),
    ("seeds", lambda row: str(len(row.reports))),
    ("top-1 float", _accuracy("float")),
    ("top-1", _accuracy("litert")),
]
_END: list[Column] = [("trained on", lambda row: row.machine), ("run", _name)]
_FILE: list[Column] = [
    (".tflite, kB", _kilobytes("tflite_bytes")),
    ("after xz, kB", _kilobytes("tflite_xz_bytes")),
]
_LATENCY: Column = ("latency", _relative("latency_ms", "float", "compressed"))

COLUMNS: dict[str, list[Column]] = {
    "ternary": [*_START, *_FILE, _LATENCY, *_END],
    "bits": [*_START, ("BOPs, of float", _share("bops")), *_FILE, *_END],
    "size": [
        *_START,
        *_FILE,
        ("value bits, of float", _value_bits),
        ("bits", _bits),
        *_END,
    ],
    "macs": [
        *_START,
        ("MACs, of float", _macs),
        ("parameters", lambda row: f"{row.mean(lambda x: x['cost']['params']):,.0f}"),
        _LATENCY,
        ("arena", _arena),
        *_END,
    ],
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_runs(table: str, places: Places) -> str:
    """Returns a table, and the commands of its rows.

    Args:
        table: str. Key of `COLUMNS`.
        places: `Places`; only the reports are read.
    """
    rows = rows_of(table, places)
    columns = COLUMNS[table]
    cells = [[cell(row) for _, cell in columns] for row in rows]
    header = [title for title, _ in columns]
    return f"{markdown(header, cells)}\n\n{_commands(rows)}"


def table_of_files(places: Places) -> str:
    """Returns the table of the kinds of files, and the commands of its rows."""
    rows = rows_of("files", places)
    cells = [_file_cells(row, file) for row in rows for file in row.reports[0]["rows"]]
    header = ["network, data", "trained by", "file", "bytes", "after xz", "latency"]
    header += ["top-1", "same class as Keras", "run"]
    return f"{markdown(header, cells)}\n\n{_commands(rows)}"


def _file_cells(row, file):
    name = {
        "ours, size": '`optimize="size"`',
        "ours, latency": '`optimize="latency"`',
        "ours, balanced": '`optimize="balanced"`',
        "ours, int8": '`optimize="latency", activations="int8"`',
        "ours, balanced, int8": '`optimize="balanced", activations="int8"`',
    }.get(file["file"], file["file"])
    same = file["agreement_with_keras"]
    return [
        _network(row),
        row.method if file["file"].startswith("ours") else "",
        name,
        f"{file['bytes']:,}",
        f"{file['xz_bytes']:,}",
        f"{file['latency_ratio']:.2f}",
        f"{100 * file['accuracy']:.2f}",
        "" if same is None else f"{100 * same:.2f}",
        _name(row),
    ]


def _commands(rows):
    """The commands of rows, in a block that opens on a click."""
    lines = ["<details><summary>Commands</summary>", ""]
    for row in {row.run.name: row for row in rows}.values():
        arguments = flag_arguments(row.run, rate=row.rate)
        command = shlex.join(["python", "-m", row.run.module, *arguments])
        seeds = [str(report["seed"]) for report in row.reports if "seed" in report]
        more = f", seeds {', '.join(seeds)}" if len(seeds) > 1 else ""
        past = f"{_MARK} by {row.run.past}" if row.run.past else ""
        lines.append(f"- {row.run.row}: `{command}`{more}{past}")
    return "\n".join([*lines, "", "</details>"])
