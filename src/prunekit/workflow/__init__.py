"""The stages in order, resumable: the only place that knows the order."""

from prunekit.workflow.inspect import Inspection, inspect_workload
from prunekit.workflow.job import Silent, Watcher
from prunekit.workflow.launched import launched_processes
from prunekit.workflow.loading import LoadReport, LoadRequest, measure_load
from prunekit.workflow.models import describe
from prunekit.workflow.outcome import Outcome, Row
from prunekit.workflow.run import make_report, run_recipe

__all__ = [
    "Inspection",
    "LoadReport",
    "LoadRequest",
    "Outcome",
    "Row",
    "Silent",
    "Watcher",
    "describe",
    "inspect_workload",
    "launched_processes",
    "make_report",
    "measure_load",
    "run_recipe",
]
