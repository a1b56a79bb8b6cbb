"""Winning quality back by training."""

from prunekit.recover.budget import UNITS, Budget, budget_in_epochs, budget_in_steps, steps_per_epoch
from prunekit.recover.checkpoints import Checkpoints
from prunekit.recover.cuts import PlannedCut, Shrinking
from prunekit.recover.distillation import Distillation, DistillationSettings, Lineage, Remembered
from prunekit.recover.feed import training_batches
from prunekit.recover.follow import Followed, check_optimizer, follow, follow_average
from prunekit.recover.gradual import GradualMasks
from prunekit.recover.learning_rate import LEARNING_RATES, learning_rate
from prunekit.recover.lora import Adapters, add_lora, merge_lora, pruned_layers
from prunekit.recover.masked_cycles import mask_in_cycles
from prunekit.recover.objective import Companion, Objective
from prunekit.recover.recalibration import Recalibrated, recalibrate_norms
from prunekit.recover.regrowth import REGROWTH, Regrowth
from prunekit.recover.rewinding import (
    EarlyPoint,
    EarlyPointKeeper,
    early_point,
    load_early_point,
    rewind,
    rewound,
    rewound_removal,
    save_early_point,
)
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
    "REGROWTH",
    "SCHEDULES",
    "UNITS",
    "Adapters",
    "Budget",
    "Checkpoints",
    "Companion",
    "Distillation",
    "DistillationSettings",
    "EarlyPoint",
    "EarlyPointKeeper",
    "EpochRecord",
    "Followed",
    "GradualMasks",
    "Lineage",
    "Objective",
    "PlannedCut",
    "Recalibrated",
    "Regrowth",
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
    "early_point",
    "exponential",
    "follow",
    "follow_average",
    "learning_rate",
    "linear",
    "load_early_point",
    "mask_in_cycles",
    "merge_lora",
    "one_cycle",
    "oneshot",
    "pruned_layers",
    "recalibrate_norms",
    "rewind",
    "rewound",
    "rewound_removal",
    "save_early_point",
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
