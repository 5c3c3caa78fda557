"""One row per report: what was compared in one run."""

from rich.table import Table

from tfcompress.reporting.tables import render


def comparison(reports, cost):
    """A table as text.

    Args:
        reports: as `tfcompress.reporting.build_report` returns them, or None.
        cost: which cost to show, "bops" or "macs".
    """
    table = Table(
        "scheme", "accuracy", cost, "of float", ".tflite bytes", "latency, of float"
    )
    for report in filter(None, reports):
        costs, latency = report["cost"], report["latency_ms"]
        table.add_row(
            report["scheme"],
            f"{report['accuracy']['litert']:.4f}",
            f"{costs[cost]:,}",
            f"1/{costs[f'float_{cost}'] / costs[cost]:.2f}",
            f"{report['size']['tflite_bytes']:,}",
            f"{latency['compressed'] / latency['float']:.2f}",
        )
    return render(table)
