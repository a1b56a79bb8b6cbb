"""One cell in a process of its own: a model on a target, its costs, and every goal asked of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.target.subjects import SUBJECTS

from prunekit.errors import GoalError, PrunekitError
from prunekit.measure import Target, environment
from prunekit.plan import Goal
from prunekit.targeting import Planner, Reached, Space, Timing, measure_target
from prunekit.targeting.latency_model import fit_latency_model
from prunekit.targeting.operator_times import SCHEMA as ALONE
from prunekit.targeting.stored import SCHEMA

TOLERANCE = 0.03
THREADS = 2


def measure(name: str, target: Target, asked: list[float], folder: Path) -> dict[str, Any]:
    """Measure the costs of one model on one target, and ask for each speed-up."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    subject = SUBJECTS[name]()
    begin = time.perf_counter()
    planner = measure_target(
        subject.model,
        subject.args,
        subject.kwargs,
        target=target,
        space=Space(subject.granularity),
        timing=Timing(real_time=True, folder=folder, tables=folder.parent / "tables"),
    )
    built, latency = time.perf_counter() - begin, planner.costs.latency
    apart = fit_latency_model(latency.times, [replace(model, parts={}) for model in latency.models])
    return {
        "model": name,
        "weights": subject.weights,
        "runtime": target.runtime,
        "precision": target.precision,
        "batch": target.batch,
        "seconds": planner.rig.seconds,
        "timed_by": [ALONE] if target.precision == "int8" else [ALONE, SCHEMA],
        "environment": environment(THREADS),
        "dense_ms": planner.costs.dense_ms,
        "table_s": round(built, 1),
        "exporting_s": round(planner.costs.seconds["exporting"], 1),
        "levers": len(planner.costs.levers),
        "operations": len(latency.times.ms),
        "errors": np.round(latency.errors, 4).tolist(),
        "median_error": round(latency.median_error, 4),
        "median_error_apart": round(apart.median_error, 4),
        "goals": list(_asked(planner, asked)),
    }


def _asked(planner: Planner, speedups: Sequence[float]) -> Iterator[dict[str, Any]]:
    """What becomes of each speed-up; each learns from the attempts at those before."""
    for speedup in speedups:
        begin, goal = time.perf_counter(), Goal("speedup", reach=speedup, tolerance=TOLERANCE)
        try:
            reached = planner.reach(goal)
        except PrunekitError as error:
            missed = {"asked": speedup, "met": False, "error": type(error).__name__, "why": str(error)}
            yield missed | ({"nearest": error.nearest.get(str(goal))} if isinstance(error, GoalError) else {})
            continue
        planner = planner.learnt(reached)
        yield {"asked": speedup, "met": True, **_facts(reached), "s": round(time.perf_counter() - begin, 1)}


def _facts(reached: Reached) -> dict[str, Any]:
    last, plan = reached.attempts[-1], reached.plan
    speedup = last.comparison.speedup
    return {
        "measured": round(speedup.median, 4),
        "low": round(speedup.low, 4),
        "high": round(speedup.high, 4),
        "pairs": speedup.pairs,
        "first": round(reached.attempts[0].comparison.speedup.median, 4),
        "attempts": len(reached.attempts),
        "tried": [round(attempt.comparison.speedup.median, 4) for attempt in reached.attempts],
        "choosing_s": round(last.choosing_s, 2),
        "macs_removed": round(plan.before.macs / plan.after.macs, 4),
    }


def main() -> None:
    """Print the cell as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SUBJECTS)
    parser.add_argument("runtime")
    parser.add_argument("batch", type=int)
    parser.add_argument("precision")
    parser.add_argument("folder", type=Path)
    parser.add_argument("asked", type=float, nargs="+")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    target = Target(given.runtime, threads=THREADS, batch=given.batch, precision=given.precision)
    print(json.dumps(measure(given.name, target, given.asked, given.folder)))


if __name__ == "__main__":
    main()
