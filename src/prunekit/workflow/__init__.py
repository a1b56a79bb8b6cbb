"""The stages in order, resumable: the only place that knows the order."""

from prunekit.workflow.inspect import Inspection, inspect_workload
from prunekit.workflow.job import Silent, Watcher
from prunekit.workflow.launched import launched_processes
from prunekit.workflow.loading import LoadReport, LoadRequest, measure_load
from prunekit.workflow.models import describe
from prunekit.workflow.outcome import Outcome, Row
from prunekit.workflow.run import make_report, run_recipe
from prunekit.workflow.target import (
    TextTable,
    describe_target,
    machine_headline,
    machine_tables,
    machine_values,
)

__all__ = [
    "Inspection",
    "LoadReport",
    "LoadRequest",
    "Outcome",
    "Row",
    "Silent",
    "TextTable",
    "Watcher",
    "describe",
    "describe_target",
    "inspect_workload",
    "launched_processes",
    "machine_headline",
    "machine_tables",
    "machine_values",
    "make_report",
    "measure_load",
    "run_recipe",
]
