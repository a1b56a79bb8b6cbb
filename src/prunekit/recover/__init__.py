"""Winning quality back by training."""

from prunekit.recover.budget import UNITS, Budget, budget_in_epochs, budget_in_steps, steps_per_epoch
from prunekit.recover.checkpoints import Checkpoints
from prunekit.recover.cuts import PlannedCut, Shrinking
from prunekit.recover.distillation import Distillation, DistillationSettings, Lineage, Remembered
from prunekit.recover.feed import training_batches
from prunekit.recover.follow import Followed, check_optimizer, follow, follow_average
from prunekit.recover.learning_rate import LEARNING_RATES, learning_rate
from prunekit.recover.lora import Adapters, add_lora, merge_lora, pruned_layers
from prunekit.recover.objective import Companion, Objective
from prunekit.recover.recalibration import Recalibrated, recalibrate_norms
from prunekit.recover.schedules import (
    SCHEDULES,
    cubic,
    exponential,
    linear,
    one_cycle,
    oneshot,
    schedule_of,
    shares,
    steps,
)
from prunekit.recover.settings import EpochRecord, TrainingRecord, TrainingSettings
from prunekit.recover.sharding import shard_layers
from prunekit.recover.shrink import Shrunk, shrink
from prunekit.recover.task import Task, task_of
from prunekit.recover.training import train
from prunekit.recover.validation import validate

__all__ = [
    "LEARNING_RATES",
    "SCHEDULES",
    "UNITS",
    "Adapters",
    "Budget",
    "Checkpoints",
    "Companion",
    "Distillation",
    "DistillationSettings",
    "EpochRecord",
    "Followed",
    "Lineage",
    "Objective",
    "PlannedCut",
    "Recalibrated",
    "Remembered",
    "Shrinking",
    "Shrunk",
    "Task",
    "TrainingRecord",
    "TrainingSettings",
    "add_lora",
    "budget_in_epochs",
    "budget_in_steps",
    "check_optimizer",
    "cubic",
    "exponential",
    "follow",
    "follow_average",
    "learning_rate",
    "linear",
    "merge_lora",
    "one_cycle",
    "oneshot",
    "pruned_layers",
    "recalibrate_norms",
    "schedule_of",
    "shard_layers",
    "shares",
    "shrink",
    "steps",
    "steps_per_epoch",
    "task_of",
    "train",
    "training_batches",
    "validate",
]
