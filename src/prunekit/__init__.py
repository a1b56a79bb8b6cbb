"""Prunes trained PyTorch models to a measured target and proves what it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.errors import PrunekitError
    from prunekit.graph import Graph, Groups, find_groups, trace
    from prunekit.importance import (
        Movement,
        Weights,
        collect,
        find_weights,
        input_norms,
        mean_gradients,
        needs_of,
        score,
        score_weights,
    )
    from prunekit.plan import (
        BySensitivity,
        Goal,
        Limits,
        MaskPlan,
        OutlierWeighted,
        PruningPlan,
        allocate,
        load_mask_plan,
        save_mask_plan,
        select_weights,
    )
    from prunekit.reconstruction import Choice, Reconstruction, Sweep, reconstruct, reconstruct_weights
    from prunekit.recover import (
        Followed,
        PlannedCut,
        Recalibrated,
        Shrinking,
        Shrunk,
        check_optimizer,
        follow,
        follow_average,
        recalibrate_norms,
        shrink,
    )
    from prunekit.surgery import (
        Masked,
        Proof,
        Pruned,
        Removal,
        attach_masks,
        fold_masks,
        mask,
        mask_weights,
        measure_sensitivity,
        prune,
        remove,
        sound,
        verify,
    )
    from prunekit.types import Granularity
    from prunekit.workload import Batch

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BySensitivity",
    "Choice",
    "Followed",
    "Goal",
    "Granularity",
    "Graph",
    "Groups",
    "Limits",
    "MaskPlan",
    "Masked",
    "Movement",
    "OutlierWeighted",
    "PlannedCut",
    "Proof",
    "Pruned",
    "PrunekitError",
    "PruningPlan",
    "Recalibrated",
    "Reconstruction",
    "Removal",
    "Shrinking",
    "Shrunk",
    "Sweep",
    "Weights",
    "__version__",
    "allocate",
    "attach_masks",
    "check_optimizer",
    "collect",
    "find_groups",
    "find_weights",
    "fold_masks",
    "follow",
    "follow_average",
    "input_norms",
    "load_mask_plan",
    "mask",
    "mask_weights",
    "mean_gradients",
    "measure_sensitivity",
    "needs_of",
    "prune",
    "recalibrate_norms",
    "reconstruct",
    "reconstruct_weights",
    "remove",
    "save_mask_plan",
    "score",
    "score_weights",
    "select_weights",
    "shrink",
    "sound",
    "trace",
    "verify",
]

_ROOMS = {
    "Batch": "workload",
    "BySensitivity": "plan",
    "Choice": "reconstruction",
    "Followed": "recover",
    "Goal": "plan",
    "Granularity": "types",
    "Graph": "graph",
    "Groups": "graph",
    "Limits": "plan",
    "MaskPlan": "plan",
    "Masked": "surgery",
    "Movement": "importance",
    "OutlierWeighted": "plan",
    "PlannedCut": "recover",
    "Proof": "surgery",
    "Pruned": "surgery",
    "PrunekitError": "errors",
    "PruningPlan": "plan",
    "Recalibrated": "recover",
    "Reconstruction": "reconstruction",
    "Removal": "surgery",
    "Shrinking": "recover",
    "Shrunk": "recover",
    "Sweep": "reconstruction",
    "Weights": "importance",
    "allocate": "plan",
    "attach_masks": "surgery",
    "check_optimizer": "recover",
    "collect": "importance",
    "find_groups": "graph",
    "find_weights": "importance",
    "fold_masks": "surgery",
    "follow": "recover",
    "follow_average": "recover",
    "input_norms": "importance",
    "load_mask_plan": "plan",
    "mask": "surgery",
    "mask_weights": "surgery",
    "mean_gradients": "importance",
    "measure_sensitivity": "surgery",
    "needs_of": "importance",
    "prune": "surgery",
    "recalibrate_norms": "recover",
    "reconstruct": "reconstruction",
    "reconstruct_weights": "reconstruction",
    "remove": "surgery",
    "save_mask_plan": "plan",
    "score": "importance",
    "score_weights": "importance",
    "select_weights": "plan",
    "shrink": "recover",
    "sound": "surgery",
    "trace": "graph",
    "verify": "surgery",
}
"""Where each public name lives; rooms are opened on first use, so that reading a report needs no torch."""


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prunekit.{room}"), name)
