"""Prunes trained PyTorch models to a measured target and proves what it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.errors import PrunekitError
    from prunekit.graph import Graph, Groups, find_groups, trace
    from prunekit.importance import collect, score
    from prunekit.plan import Goal, Limits, PruningPlan, allocate
    from prunekit.reconstruction import Choice, Reconstruction, Sweep, reconstruct, reconstruct_weights
    from prunekit.surgery import Proof, Pruned, Removal, mask, prune, remove, sound, verify
    from prunekit.types import Granularity
    from prunekit.workload import Batch

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Choice",
    "Goal",
    "Granularity",
    "Graph",
    "Groups",
    "Limits",
    "Proof",
    "Pruned",
    "PrunekitError",
    "PruningPlan",
    "Reconstruction",
    "Removal",
    "Sweep",
    "__version__",
    "allocate",
    "collect",
    "find_groups",
    "mask",
    "prune",
    "reconstruct",
    "reconstruct_weights",
    "remove",
    "score",
    "sound",
    "trace",
    "verify",
]

_ROOMS = {
    "Batch": "workload",
    "Choice": "reconstruction",
    "Goal": "plan",
    "Granularity": "types",
    "Graph": "graph",
    "Groups": "graph",
    "Limits": "plan",
    "Proof": "surgery",
    "Pruned": "surgery",
    "PrunekitError": "errors",
    "PruningPlan": "plan",
    "Reconstruction": "reconstruction",
    "Removal": "surgery",
    "Sweep": "reconstruction",
    "allocate": "plan",
    "collect": "importance",
    "find_groups": "graph",
    "mask": "surgery",
    "prune": "surgery",
    "reconstruct": "reconstruction",
    "reconstruct_weights": "reconstruction",
    "remove": "surgery",
    "score": "importance",
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
