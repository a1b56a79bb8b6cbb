"""From a run directory to one self-contained HTML file."""

from prunekit.report.write import write_report as write_report

__all__ = ["write_report"]
