"""The training of a recovery: budgets, steps on all processes, validation, and checkpoints to go on from."""

from prunekit.recover.training.budget import UNITS, Budget, budget_in_epochs, budget_in_steps, steps_per_epoch
from prunekit.recover.training.checkpoints import Checkpoints
from prunekit.recover.training.feed import training_batches
from prunekit.recover.training.learning_rate import LEARNING_RATES, learning_rate
from prunekit.recover.training.objective import Objective
from prunekit.recover.training.restart import Trained, restart
from prunekit.recover.training.settings import EpochRecord, TrainingRecord, TrainingSettings
from prunekit.recover.training.sharding import shard_layers
from prunekit.recover.training.task import Task, task_of
from prunekit.recover.training.train import train
from prunekit.recover.training.validation import validate

__all__ = [
    "LEARNING_RATES",
    "UNITS",
    "Budget",
    "Checkpoints",
    "EpochRecord",
    "Objective",
    "Task",
    "Trained",
    "TrainingRecord",
    "TrainingSettings",
    "budget_in_epochs",
    "budget_in_steps",
    "learning_rate",
    "restart",
    "shard_layers",
    "steps_per_epoch",
    "task_of",
    "train",
    "training_batches",
    "validate",
]
