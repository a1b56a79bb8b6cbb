"""The sections that say what is to be reached, and on what it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prunekit.plan.goal import KINDS, MEASURED_KINDS, Goal
from prunekit.recipe.base import Count, Positive, Section, Share
from prunekit.recipe.mistakes import MistakeError, one_of

COUNTED_TOLERANCE, MEASURED_TOLERANCE = 0.02, 0.03
"""What holds where no tolerance is given."""


class GoalSection(Section):
    """How much is to go."""

    kind: Annotated[str, one_of(KINDS)] = Field(
        default="sparsity",
        description="what is counted: `sparsity` (of the prunable units), `macs` or `params`; or what is "
        "measured on the target: `speedup`, `latency_ms`, `throughput`, `memory_bytes`, `size_bytes`, "
        "`kv_cache_bytes` or `quality_drop`",
    )
    remove: Share | None = Field(
        default=None,
        description="the fraction to remove, from 0 to below 1 (0.5 = half of it goes); not for what is "
        "measured",
    )
    reach: Positive | None = Field(
        default=None,
        description="the figure to be left, a whole number of 1 or more, for `macs` and `params`; the figure "
        "to reach, above 0, for what is measured (2 = twice as fast)",
    )
    scope: Literal["uniform", "global"] = Field(
        default="uniform",
        description="where: `uniform` (the same share of every group) or `global` (one ranking of all)",
    )
    tolerance: Share | None = Field(
        default=None,
        description="how far the figure may lie from the asked one, relative to it, from 0 to below 1; "
        "without it 0.02, for what is measured 0.03",
    )
    percentile: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        default=None, description="of `latency_ms`, above 0 and below 100; without it the median"
    )

    @property
    def is_measured(self) -> bool:
        """Whether only a target can say if it is reached."""
        return self.kind in MEASURED_KINDS

    @property
    def goal(self) -> Goal:
        """The same as planning takes it."""
        reach = self.reach
        if reach is not None and not self.is_measured:
            reach = int(reach)
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = MEASURED_TOLERANCE if self.is_measured else COUNTED_TOLERANCE
        return Goal(self.kind, self.remove, reach, tolerance, self.percentile)  # pyright: ignore[reportArgumentType]

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> GoalSection:
        if self.is_measured:
            self._asks_for_a_figure()
        if (self.remove is None) == (self.reach is None):
            both = "Both remove and reach are given" if self.remove is not None else "Nothing is asked for"
            raise MistakeError(
                "", both, "exactly one of `remove` (a fraction) and `reach` (an absolute figure)"
            )
        if self.kind == "sparsity" and self.reach is not None:
            raise MistakeError(
                "reach",
                f"It is {self.reach:g} and the kind is sparsity",
                "`remove` for sparsity, or the kind macs or params",
            )
        if self.reach is not None and not self.is_measured and not self.reach.is_integer():
            raise MistakeError(
                "reach", f"It is {self.reach:g}", f"a whole number of 1 or more for {self.kind}"
            )
        if self.percentile is not None and self.kind != "latency_ms":
            raise MistakeError(
                "percentile", f"The kind is {self.kind}", "a percentile with the kind latency_ms alone"
            )
        return self

    def _asks_for_a_figure(self) -> None:
        what = f"The kind {self.kind} is measured"
        if self.remove is not None:
            raise MistakeError("remove", what, f"`reach`: {MEASURED_KINDS[self.kind]}")  # pyright: ignore[reportArgumentType]
        if self.reach is None:
            raise MistakeError("", f"{what}, and nothing is asked for", "`reach`, the figure to reach")
        if "scope" in self.model_fields_set:
            raise MistakeError(
                "scope", what, "no scope: which groups lose how much follows from what they cost"
            )


def _as_list(value: object) -> object:
    """A list as a tuple, one goal as a tuple of one.

    Raises:
        MistakeError: an empty list.
    """
    if isinstance(value, list) and not value:
        raise MistakeError("", "The list is empty", "a section such as `goal: {remove: 0.5}`, or several")
    return tuple(value) if isinstance(value, list) else (value,)


def _apart(goals: tuple[GoalSection, ...]) -> tuple[GoalSection, ...]:
    """Goals that can hold at once.

    Raises:
        MistakeError: one of several is a sparsity or has a scope, or two ask for the same.
    """
    if len(goals) == 1:
        return goals
    seen: dict[tuple[str, float | None], int] = {}
    for number, goal in enumerate(goals):
        if goal.kind == "sparsity":
            raise MistakeError(
                f"{number}.kind", "A sparsity is one of several goals", "a sparsity alone, or other kinds"
            )
        if "scope" in goal.model_fields_set:
            raise MistakeError(
                f"{number}.scope", "There are several goals", "no scope: it follows from what groups cost"
            )
        if seen.setdefault((goal.kind, goal.percentile), number) != number:
            raise MistakeError(
                f"{number}.kind", f"There are two goals of the kind {goal.kind}", "each kind of goal once"
            )
    return goals


Goals = Annotated[tuple[GoalSection, ...], BeforeValidator(_as_list), AfterValidator(_apart)]


class TargetSection(Section):
    """What the model is to be fast on."""

    runtime: Literal["onnxruntime", "openvino", "torch_eager", "torch_compile"] = Field(
        default="onnxruntime",
        description="`onnxruntime`, `openvino`, `torch_eager` or `torch_compile`, on the CPU",
    )
    threads: Count = Field(default=1, description="threads of the runtime, a whole number of 1 or more")
    batch: Count = Field(default=1, description="examples in one call, a whole number of 1 or more")
    sequence: Count | None = Field(
        default=None,
        description="positions of an example, where it has such a dimension; the workload's example inputs "
        "must have as many",
    )
    precision: Literal["fp32", "bf16", "int8"] = Field(
        default="fp32",
        description="what is computed in: `fp32`, `bf16` where runtime and processor do it, or `int8` after "
        "quantization, on `onnxruntime` and `openvino`",
    )
    real_time: bool = Field(
        default=False,
        description="`true` times with real-time scheduling where the process may, for machines that others "
        "use too",
    )
    sensitivities: bool = Field(
        default=True,
        description="`true` measures on calibration data what each group would be missed; `false` takes it "
        "from the scores alone",
    )
    most_levels: Annotated[int, Field(ge=2, le=64)] = Field(
        default=8, description="widths of each group to choose from, a whole number from 2 to 64"
    )
    variants: Annotated[int, Field(ge=1, le=100)] = Field(
        default=8,
        description="whole models that the model of latency is fitted to, a whole number from 1 to 100",
    )
    seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        default=5.0,
        description="that timing a model beside the dense one takes at least, from 0 to 600",
    )
