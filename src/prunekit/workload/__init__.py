"""What the model is for: its inputs, data splits, loss and per-example scoring."""

from prunekit.workload.batch import Batch
from prunekit.workload.checks import check_splits, check_workload
from prunekit.workload.image_classification import ImageClassification, logits_of
from prunekit.workload.load import load_workload, source_digest
from prunekit.workload.predict import device_of, evaluating, predict
from prunekit.workload.protocol import (
    DecidingWorkload,
    Workload,
    build_architecture,
    build_parent,
    deciding,
    load_weights,
)
from prunekit.workload.split import Split
from prunekit.workload.splits import DecidingSplits, SealedSplit, Splits

__all__ = [
    "Batch",
    "DecidingSplits",
    "DecidingWorkload",
    "ImageClassification",
    "SealedSplit",
    "Split",
    "Splits",
    "Workload",
    "build_architecture",
    "build_parent",
    "check_splits",
    "check_workload",
    "deciding",
    "device_of",
    "evaluating",
    "load_weights",
    "load_workload",
    "logits_of",
    "predict",
    "source_digest",
]
