"""The sections of a recipe as frozen, checked settings.

The description of a field says what is expected of it, in the documentation and in the error alike.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SkipValidation,
    model_validator,
)

from prunekit.errors import UsageError
from prunekit.evaluate import GATES, Gate, make_gate
from prunekit.importance import CALIBRATED, NORMALIZATIONS, REDUCTIONS
from prunekit.recipe.base import Count, Patterns, Section, as_tuple
from prunekit.recipe.goal import Goals, GoalSection, TargetSection
from prunekit.recipe.mistakes import MistakeError, nearest, one_of, shown
from prunekit.recipe.training import Parent, Recover
from prunekit.recover import SCHEDULES, shares, steps
from prunekit.types import WIDTHS, Granularity


def _curve(value: object) -> object:
    """A name stays what it is; pairs become a tuple of pairs of floats."""
    if isinstance(value, str):
        if value not in SCHEDULES:
            raise MistakeError(
                "",
                f"There is no {value!r}{nearest(value, SCHEDULES)}",
                f"one of {', '.join(SCHEDULES)}, or pairs such as [[0.5, 0.3], [1, 1]]",
            )
        return value
    try:
        steps(value)  # type: ignore[arg-type]
    except UsageError as error:
        raise MistakeError("", f"It is {shown(value)}", error.expected) from error
    return tuple((float(start), float(level)) for start, level in value)  # type: ignore[attr-defined]


Criterion = Annotated[str, one_of(CALIBRATED)]
Curve = Annotated[str | tuple[tuple[float, float], ...], BeforeValidator(_curve)]
Reduction = Annotated[str, one_of(REDUCTIONS)]
Normalization = Annotated[str, one_of(NORMALIZATIONS)]
Kind = Annotated[str, one_of({kind.value: kind for kind in Granularity})]


class Schedule(Section):
    """In how many cycles of score, plan, prune and recover the goal is reached."""

    cycles: Annotated[int, Field(ge=1, le=99)] = Field(default=1, description="a whole number from 1 to 99")
    curve: Curve = Field(
        default="cubic",
        description="how much is gone after each cycle: `oneshot` (one cycle), `linear`, `cubic`, "
        "`exponential`, `one_cycle`, or steps as pairs of progress and share such as [[0.5, 0.3], [1, 1]]",
    )

    @model_validator(mode="after")
    def _every_cycle_removes_something(self) -> Schedule:
        if self.curve == "oneshot" and self.cycles != 1:
            raise MistakeError(
                "curve",
                f"It is oneshot with {self.cycles} cycles",
                "cycles of 1, or another curve",
            )
        reached = (0.0, *shares(self.curve, self.cycles))
        idle = [cycle for cycle in range(1, len(reached)) if reached[cycle] <= reached[cycle - 1]]
        if idle:
            raise MistakeError(
                "curve",
                f"Cycle {idle[0]} of {self.cycles} (progress {idle[0] / self.cycles:.4f}) removes nothing",
                "pairs with a higher share at or before each cycle's progress",
            )
        return self


class Importance(Section):
    """What makes a unit worth keeping."""

    criterion: Criterion = Field(default="l2", description=f"one of {', '.join(CALIBRATED)}")
    fallback: Criterion | None = Field(
        default=None, description="what scores groups the criterion does not fit"
    )
    reduction: Reduction = Field(default="mean", description=f"over a unit's slices: {', '.join(REDUCTIONS)}")
    normalization: Normalization = Field(
        default="mean", description=f"what the scores of a group are divided by: {', '.join(NORMALIZATIONS)}"
    )
    batch_size: Count = Field(default=64, description="calibration examples per batch, 1 or more")
    examples: Count | None = Field(
        default=None, description="how many calibration examples are used, 1 or more; without it all"
    )


class LimitsSection(Section):
    """What the groups of one pattern may not be pruned beyond; what is absent is as for all groups."""

    min_units: Count | None = Field(
        default=None, description="the fewest units they keep, a whole number of 1 or more"
    )
    max_sparsity: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="the largest fraction they lose, from 0 to 1"
    )
    round_to: Count | None = Field(
        default=None, description="they keep a multiple of this, a whole number of 1 or more"
    )


class GroupsSection(Section):
    """Which groups may lose units, and how many."""

    granularity: Annotated[tuple[Kind, ...], BeforeValidator(as_tuple)] | None = Field(
        default=None,
        min_length=1,
        description="a list of kinds of unit, such as [channel]; without it every width",
    )
    only: Patterns = Field(
        default=(), description="a list of patterns such as [layer1.*]; without it every group may be pruned"
    )
    ignore: Patterns = Field(default=(), description="a list of patterns of groups that are kept whole")
    min_units: Count = Field(
        default=1, description="the fewest units a group keeps, a whole number of 1 or more"
    )
    max_sparsity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="the largest fraction a group loses, above 0 and at most 1; without it 1, for scope "
        "global and for what is measured 0.9",
    )
    round_to: Count = Field(
        default=1, description="a pruned group keeps a multiple of this, a whole number of 1 or more"
    )
    per_group: dict[str, LimitsSection] = Field(
        default_factory=dict,
        description="limits of the groups that match a pattern, such as `layer1.*: {min_units: 8}`; they "
        "come before the limits above, a later pattern before an earlier one",
    )

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of unit that may go."""
        return frozenset(WIDTHS if self.granularity is None else self.granularity)


class Export(Section):
    """How the models leave PyTorch."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(
        default=20, description="the ONNX operator set, a whole number from 18 to 23"
    )
    calibration: Count = Field(
        default=256,
        description="calibration examples that ranges of activations are found on where the precision is "
        "`int8`, 1 or more; all, where there are fewer",
    )


class Validate(Section):
    """Where and how latency is measured."""

    runtime: Literal["onnxruntime", "openvino", "torch_eager", "torch_compile"] | None = Field(
        default=None,
        description="`onnxruntime`, `openvino`, `torch_eager` or `torch_compile`; without it that of "
        "`target`, or `onnxruntime`",
    )
    batch: Count | None = Field(
        default=None,
        description="examples per timed call, a whole number of 1 or more; without it those of `target`, "
        "or 1",
    )
    threads: Count | None = Field(
        default=None,
        description="threads of the runtime, a whole number of 1 or more; without it those of `target`, or 1",
    )
    precision: Literal["fp32", "bf16", "int8"] | None = Field(
        default=None,
        description="what is computed in, `fp32`, `bf16` or `int8`; without it that of `target`, or `fp32`",
    )
    pairs: Annotated[int, Field(ge=10)] = Field(
        default=200, description="timed pairs of dense and pruned calls, a whole number of 10 or more"
    )
    warmup: Count = Field(
        default=20, description="calls of each model before timing, a whole number of 1 or more"
    )


ON_TARGET = ("runtime", "batch", "threads", "precision")
"""What validation takes from the target where nothing else is said."""


class Evaluate(Section):
    """How quality is compared."""

    batch_size: Count = Field(default=256, description="test examples per batch, a whole number of 1 or more")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="of the intervals, above 0.5 and below 1"
    )
    resamples: Annotated[int, Field(ge=1000)] = Field(
        default=10_000, description="of the bootstrap, a whole number of 1000 or more"
    )


def _gates(entries: object) -> tuple[Gate, ...]:
    if not isinstance(entries, list | tuple):
        raise MistakeError(
            "", f"It is {shown(entries)}", "a list of gates, such as `- max_quality_drop: 0.01`"
        )
    return tuple(_gate(entry, number) for number, entry in enumerate(entries))


def _gate(entry: object, number: int) -> Gate:
    """Make a gate from ``{kind: limit}`` or ``{kind: {setting: value}}``."""
    if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry)), str):
        raise MistakeError(
            str(number), f"It is {shown(entry)}", "one gate and its limit, such as `max_quality_drop: 0.01`"
        )
    [(kind, settings)] = entry.items()
    if kind not in GATES:
        raise MistakeError(
            str(number), f"There is no gate {kind!r}{nearest(kind, GATES)}", f"one of {', '.join(GATES)}"
        )
    settings = settings if isinstance(settings, dict) else {"limit": settings}
    known = [field.name for field in fields(GATES[kind].make)]
    for key in settings:
        if key not in known:
            raise MistakeError(
                f"{number}.{kind}.{key}",
                f"The key is unknown{nearest(str(key), known)}",
                f"one of {', '.join(known)}",
            )
    if "limit" not in settings:
        raise MistakeError(f"{number}.{kind}.limit", "It is missing", "the limit of the gate")
    try:
        return make_gate(kind, **settings)
    except UsageError as error:
        raise MistakeError(f"{number}.{kind}", error.given, error.expected) from error


class Recipe(Section):
    """Everything a run is told."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="a name of letters, digits, '.', '_' and '-'; the run directory is called so"
    )
    workload: Annotated[str, Field(min_length=1)] = Field(
        description="the Python file with the function `workload()`, relative to the recipe"
    )
    goals: Goals = Field(
        alias="goal",
        description="a section such as `goal: {remove: 0.5}`, or a list of such sections that all hold",
    )
    target: TargetSection | None = Field(
        default=None,
        description="a section with runtime, threads, batch and precision; what is measured is"
        " measured there",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="a whole number from 0 to 4294967295; everything random follows from it"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="CPU threads that PyTorch computes with, a whole number from 1 to 1024"
    )
    parent: Parent = Field(default=Parent(), description="a section: a checkpoint, or settings to train with")
    schedule: Schedule = Field(default=Schedule(), description="a section with cycles and curve")
    importance: Importance = Field(default=Importance(), description="a section with a criterion")
    groups: GroupsSection = Field(default=GroupsSection(), description="a section with patterns and limits")
    recover: Recover = Field(
        default=Recover(), description="a section with a budget and settings to train with"
    )
    export: Export = Field(default=Export(), description="a section with the opset and calibration")
    validate_: Validate = Field(
        default=Validate(), alias="validate", description="a section with runtime, batch, threads and pairs"
    )
    evaluate: Evaluate = Field(default=Evaluate(), description="a section with confidence and resamples")
    gates: Annotated[SkipValidation[tuple[Gate, ...]], BeforeValidator(_gates)] = Field(
        default=(), description="a list such as [max_quality_drop: 0.01, min_speedup: {limit: 2, by: point}]"
    )

    @property
    def goal(self) -> GoalSection:
        """The goal, the first one of several."""
        return self.goals[0]

    @property
    def by_target(self) -> bool:
        """Whether a target decides what goes: a goal is measured, or there are several."""
        return len(self.goals) > 1 or self.goal.is_measured

    @property
    def target_or_default(self) -> TargetSection:
        """What is measured on, also where the recipe says nothing of it."""
        return self.target or TargetSection()

    @property
    def validation(self) -> Validate:
        """How the result is validated: what is not said is as on the target."""
        same = {key: getattr(self.target_or_default, key) for key in ON_TARGET}
        own = {key: value for key in ON_TARGET if (value := getattr(self.validate_, key)) is not None}
        return self.validate_.model_copy(update={**same, **own})

    @property
    def ships_int8(self) -> bool:
        """Whether the models are quantized before they are validated and evaluated."""
        return self.validation.precision == "int8"

    @model_validator(mode="after")
    def _files_are_quantized(self) -> Recipe:
        for name, section in (("target", self.target_or_default), ("validate", self.validation)):
            runtime = section.runtime or ""
            if section.precision == "int8" and runtime.startswith("torch_"):
                raise MistakeError(
                    f"{name}.runtime",
                    f"It is {runtime}, and the precision is int8",
                    f"onnxruntime or openvino, which take quantized files, or another {name}.precision",
                )
        return self

    @model_validator(mode="after")
    def _memory_is_of_what_serves_files(self) -> Recipe:
        runtime = self.target_or_default.runtime
        if runtime.startswith("torch_") and any(goal.kind == "memory_bytes" for goal in self.goals):
            raise MistakeError(
                "target.runtime",
                f"It is {runtime}, and the goal is memory_bytes",
                "onnxruntime or openvino, which serve exported models, or another goal",
            )
        return self

    @model_validator(mode="after")
    def _knows_the_original_budget(self) -> Recipe:
        if self.recover.share_of_original is not None and self.parent.checkpoint is not None:
            raise MistakeError(
                "recover.share_of_original",
                "The parent is a checkpoint, whose training budget is not known",
                "recover.epochs",
            )
        return self
