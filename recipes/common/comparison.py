"""Table that compares the reports of one run."""

from rich.table import Table

from tfcompress.reporting.tables import render


def print_comparison(reports, cost):
    """Prints a table with one row per report; without any report prints nothing.

    Args:
        reports: list of dicts, as `tfcompress.reporting.build_report` returns them.
            None where the backend could not export.
        cost: "bops" or "macs".
    """
    reports = [report for report in reports if report is not None]
    if not reports:
        return
    table = Table(
        "scheme", "accuracy", cost, "of float", ".tflite bytes", "latency, of float"
    )
    for report in reports:
        costs, latency = report["cost"], report["latency_ms"]
        table.add_row(
            report["scheme"],
            f"{report['accuracy']['litert']:.4f}",
            f"{costs[cost]:,}",
            f"1/{costs[f'float_{cost}'] / costs[cost]:.2f}",
            f"{report['size']['tflite_bytes']:,}",
            f"{latency['compressed'] / latency['float']:.2f}",
        )
    print(render(table))
