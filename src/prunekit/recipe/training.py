"""The sections of a recipe that say how a model is trained: the parent, and recovery."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from prunekit.recipe.base import Count, NotNegative, Patterns, Positive, Section, Share
from prunekit.recipe.mistakes import MistakeError
from prunekit.recover import UNITS, TrainingSettings


class _Training(Section):
    """What training the parent and recovering the pruned model have in common."""

    epochs: NotNegative | None = Field(
        default=None, description="the budget in passes over the training data, 0 or more; 0 = no training"
    )
    steps: Count | None = Field(
        default=None, description="the budget in optimizer steps, a whole number of 1 or more"
    )
    examples: Count | None = Field(
        default=None,
        description="the budget in training examples, a whole number of 1 or more; each counts as often as "
        "it is seen",
    )
    tokens: Count | None = Field(
        default=None,
        description="the budget in tokens of the training examples, a whole number of 1 or more; for token "
        "inputs only",
    )
    seconds: Positive | None = Field(
        default=None,
        description="the budget in seconds of wall time, above 0; such a run is not repeated bit by bit",
    )
    batch_size: Count = Field(
        default=64, description="examples per step, of all processes together, 1 or more"
    )
    accumulate: Count = Field(
        default=1,
        description="the parts, at most, in which a process runs the examples of a step, to save memory; "
        "1 or more",
    )
    momentum: Share = Field(default=0.9, description="of sgd, from 0 to below 1")
    warmup: Share | None = Field(
        default=None,
        description="the share of the budget in which the learning rate rises, from 0 to below 1; without it "
        "0.05, for one_cycle 0",
    )
    rewind_to: Share = Field(
        default=0.0,
        description="where on the schedule the learning rate begins, from 0 to below 1; 0.5 = its middle",
    )
    clip_norm: Positive | None = Field(
        default=None, description="the largest norm of all gradients together, above 0; without it no limit"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="`fp32`, or `bf16` for automatic mixed precision"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="decay of a moving average of the weights, above 0 and below 1, which is then what "
        "counts; without it none",
    )
    validate_every: Count | None = Field(
        default=None, description="steps between two validations, 1 or more; without it after every epoch"
    )
    patience: Count | None = Field(
        default=None,
        description="validations without a better figure before training stops, 1 or more; without it never",
    )
    select: Literal["metric", "loss"] = Field(
        default="metric", description="what is better on validation: a higher `metric` or a lower `loss`"
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="processes that read training examples ahead, 0 or more"
    )
    checkpoint_seconds: Positive = Field(
        default=600.0,
        description="above 0: a run that is killed goes on from what it wrote down at most so many seconds "
        "before",
    )

    @model_validator(mode="after")
    def _has_one_budget(self) -> Self:
        given = [unit for unit in (*UNITS, "share_of_original") if getattr(self, unit, None) is not None]
        if len(given) > 1:
            raise MistakeError(
                given[-1], f"It is given together with {given[0]}", "one of them; both are the budget"
            )
        if getattr(self, "schedule", None) == "one_cycle" and self.warmup:
            raise MistakeError("warmup", f"It is {self.warmup} with one_cycle", "no warmup: it has its own")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What the library's training settings are made of, but for the seed."""
        return self.model_dump(include={field.name for field in fields(TrainingSettings)})


class Parent(_Training):
    """How the dense model comes to be: trained on the spot, or loaded."""

    checkpoint: str | None = Field(
        default=None,
        description="a .safetensors file with the weights, relative to the recipe; nothing is trained",
    )
    epochs: Positive | None = Field(
        default=None,
        description="the budget in passes over the training data, above 0; 10 if no budget is given",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="`sgd` (with Nesterov momentum) or `adamw`"
    )
    learning_rate: Positive = Field(default=0.05, description="the highest learning rate, above 0")
    weight_decay: NotNegative = Field(default=5e-4, description="a number of 0 or more")
    schedule: Literal["cosine", "linear", "constant", "one_cycle"] = Field(
        default="cosine",
        description="how the learning rate goes on after warm-up: `cosine` or `linear` (to 0), `constant` "
        "or `one_cycle` (up and down)",
    )

    @model_validator(mode="after")
    def _is_trained_or_loaded(self) -> Parent:
        settings = sorted(self.model_fields_set - {"checkpoint"})
        if self.checkpoint is not None and settings:
            given = f"It is given together with parent.checkpoint {self.checkpoint!r}"
            raise MistakeError(
                settings[0], given, "either a checkpoint or settings to train with; remove one of them"
            )
        if self.checkpoint is not None and not self.checkpoint.endswith(".safetensors"):
            raise MistakeError("checkpoint", f"It is {self.checkpoint!r}", "a file that ends in .safetensors")
        return self


class Distill(Section):
    """What is learnt from the dense parent: the weights of four terms that are added up."""

    logits: NotNegative = Field(
        default=1.0, description="weight of the divergence from the parent's softened outputs"
    )
    temperature: Positive = Field(default=2.0, description="what logits are divided by, above 0")
    hidden: NotNegative = Field(default=0.0, description="weight of the distance between hidden states")
    hidden_modules: Patterns = Field(
        default=(),
        description="patterns of modules whose outputs are compared; without it repeated layers",
    )
    hidden_distance: Literal["mse", "cosine"] = Field(default="mse", description="`mse` or `cosine`")
    projection: Literal["identity", "linear"] = Field(
        default="identity",
        description="`identity` compares the units that are left with what they were, `linear` learns a map",
    )
    attention: NotNegative = Field(default=0.0, description="weight of the distance between attention maps")
    attention_modules: Patterns = Field(
        default=(), description="patterns of attention modules; without it those that are known"
    )
    attention_distance: Literal["kl", "mse"] = Field(default="kl", description="`kl` or `mse`")
    task: NotNegative = Field(
        default=0.0, description="weight of the workload's own loss; 0 = no labels are needed"
    )
    remember: bool = Field(
        default=False,
        description="`true` runs the parent over the training data once and reads its outputs from disk then",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What the library's settings of a distillation are made of."""
        return self.model_dump(exclude={"remember"})

    @model_validator(mode="after")
    def _learns_something(self) -> Distill:
        if not (self.logits or self.hidden or self.attention):
            raise MistakeError("logits", "All weights but the task's are 0", "a weight above 0")
        return self


class Recover(_Training):
    """How quality is won back after each cycle; the budget is for all cycles together."""

    optimizer: Literal["sgd", "adamw"] | None = Field(
        default=None,
        description="`sgd` (with Nesterov momentum) or `adamw`; without it that of the parent's training, "
        "`sgd` where that is not known",
    )
    learning_rate: Positive | None = Field(
        default=None,
        description="the highest learning rate, above 0; without it 0.01, and by how much was lost where "
        "`adamw` trained the parent too",
    )
    schedule: Literal["cosine", "linear", "constant", "one_cycle"] | None = Field(
        default=None,
        description="how the learning rate goes on after warm-up: `cosine` or `linear` (to 0), `constant` "
        "or `one_cycle` (up and down); without it `cosine`, and by how much was lost where the rate is too",
    )
    weight_decay: NotNegative | None = Field(
        default=None,
        description="a number of 0 or more; without it the parent's where `adamw` trains after `adamw`, "
        "else 0.0005",
    )
    warmup: Share | None = Field(
        default=None,
        description="the share of the budget in which the learning rate rises, from 0 to below 1; without it "
        "0.05, for one_cycle 0, and 0.1 where `adamw` restarts at the parent's highest rate",
    )
    epochs: NotNegative | None = Field(
        default=None,
        description="the budget in passes over the training data in all cycles together, as all budgets are, "
        "0 or more; 5 if no budget is given",
    )
    share_of_original: NotNegative | None = Field(
        default=None, description="the same budget as a share of what training the parent took, 0 or more"
    )
    recalibrate: bool = Field(
        default=False,
        description="`true` recomputes the statistics of batch norms on calibration data before training",
    )

    shard: bool = Field(
        default=False,
        description="`true` spreads the model over the processes while it trains (FSDP2)",
    )
    distill: Distill | None = Field(
        default=None, description="a section: what is learnt from the dense parent; without it nothing is"
    )

    @model_validator(mode="after")
    def _distils_while_it_trains(self) -> Recover:
        if self.distill is not None and 0 in (self.epochs, self.share_of_original):
            raise MistakeError("distill", "It is given with a budget of 0", "a budget above 0")
        return self
