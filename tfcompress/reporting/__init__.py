"""Reports of a compressed model: a table, `report.json` and plots."""

from tfcompress.reporting.plots import plot_gates, plot_layers, plot_sizes
from tfcompress.reporting.report import build_report, validate_report, write_report
from tfcompress.reporting.summary import summary

__all__ = [
    "build_report",
    "plot_gates",
    "plot_layers",
    "plot_sizes",
    "summary",
    "validate_report",
    "write_report",
]
