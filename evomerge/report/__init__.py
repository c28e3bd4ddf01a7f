"""Pictures of a run, and the report page. Plotly is imported with the first figure."""

from evomerge.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
