"""Every exception prunekit raises on purpose.

PrunekitError
├── UsageError                what the user gave cannot be used        (exit code 2)
│   ├── RecipeError           the recipe: unknown key, wrong type, missing file
│   ├── GoalError             a goal nothing can reach
│   ├── WorkloadError         the workload file, its data or its splits
│   ├── SelectionError        a pattern that matches nothing, a limit above a width
│   ├── ShapeError            arrays or tensors whose shapes do not fit
│   ├── PlanError             a plan that is damaged or was made for another model
│   └── RunDirectoryError     a run directory that belongs to something else
└── RunError                  the work was asked for rightly and failed (exit code 3)
├── TraceError            torch.export could not trace the model
├── CalibrationError      statistics that cannot be used: no batches, NaN, no gradient
├── ProofError            the removed model is not the model the plan describes
├── TrainingError         recovery diverged or could not start
├── ExportError           the exporter or the runtime refused the graph
├── MeasurementError      a measurement could not be made
├── StorageError          a file could not be written or read back
└── RankError             one of several processes is lost, or they do not agree
"""

from __future__ import annotations

from collections.abc import Mapping


class PrunekitError(Exception):
    """Base of all errors raised on purpose; its text is one paragraph that says what to do next.

    Args:
        given: what was given or what happened, as a sentence without its full stop.
        expected: what would have been right.
        where: the place in the user's input (recipe path, file, module or parameter name).
        remedy: what to do about it.

    Attributes:
        on_all_ranks: every one of several processes raises this same error.
    """

    exit_code = 3
    on_all_ranks = False

    def __init__(self, given: str, *, expected: str = "", where: str = "", remedy: str = "") -> None:
        self.given, self.expected, self.where, self.remedy = given, expected, where, remedy
        location = f"{where}: " if where else ""
        sentences = [location + given]
        if expected:
            sentences.append(f"Expected {expected}")
        if remedy:
            sentences.append(remedy)
        super().__init__(" ".join(sentence.rstrip(".") + "." for sentence in sentences))


class UsageError(PrunekitError):
    """What the user gave cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe has an unknown key, a wrong type, or names something that is missing."""


class GoalError(UsageError):
    """The goal cannot be reached by any plan.

    Attributes:
        nearest: by goal, as it is written, what the plan that came nearest measured; empty where none was
            measured.
    """

    def __init__(self, given: str, *, nearest: Mapping[str, float] | None = None, **said: str) -> None:
        super().__init__(given, **said)
        self.nearest = dict(nearest or {})


class WorkloadError(UsageError):
    """The workload file, its data or its splits cannot be used."""


class SelectionError(UsageError):
    """A pattern matches nothing, or a limit does not fit the width it limits."""


class ShapeError(UsageError):
    """Arrays or tensors whose shapes do not fit together."""


class PlanError(UsageError):
    """A plan is damaged, or was made for another model."""


class RunDirectoryError(UsageError):
    """A run directory belongs to another recipe, or is not a run directory."""


class RunError(PrunekitError):
    """The work was asked for rightly and failed."""


class TraceError(RunError):
    """torch.export could not trace the model."""


class CalibrationError(RunError):
    """Calibration statistics that cannot be used."""


class ProofError(RunError):
    """The removed model is not the model that the plan describes."""


class TrainingError(RunError):
    """Training diverged or could not start."""


class ExportError(RunError):
    """The exporter or the runtime refused the graph."""


class MeasurementError(RunError):
    """A measurement could not be made."""


class StorageError(RunError):
    """A file could not be written, or not be read back as it was written."""


class RankError(RunError):
    """One of several processes is lost, or they do not agree on what they should."""
