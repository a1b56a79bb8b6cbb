"""One calibration pass for all criteria of a model, then score, plan, remove and judge for each."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from typing import Any

from benchmarks.criteria.study import Contest, Study, Subject

import prunekit as pk
from prunekit.importance import NEEDS, Statistics, needs_of


def measure(study: Study, seeds: int) -> dict[str, Any]:
    """Everything that is said about one model: its rows, its calibrations and the dense figures."""
    rows: list[dict[str, Any]] = []
    calibrations: list[dict[str, Any]] = []
    dense: list[dict[str, float]] = []
    for seed in range(seeds):
        subject = study.prepare(seed)
        if seed == 0 or study.seed_makes_the_model:
            dense.append(subject.judge(subject.model))
            print(json.dumps({"seed": seed, "dense": dense[-1]}), flush=True)
        stats, took = calibrate(study, subject)
        calibrations.append(took | {"seed": seed})
        print(json.dumps(calibrations[-1]), flush=True)
        for contest in study.contests:
            for criterion in contest.criteria:
                if seed and not study.depends_on_seed(criterion):
                    continue
                rows.extend(cut(study, subject, contest, criterion, stats, seed))
    return {"dense": dense, "calibrations": calibrations, "rows": rows}


def calibrate(study: Study, subject: Subject) -> tuple[Statistics, dict[str, Any]]:
    """The statistics of all criteria of all contests, from one pass; and what that took.

    CPU seconds on one thread; ``held_bytes`` is what :func:`prunekit.collect` counted beside model and data,
    ``process_bytes`` the most that the process held, with the model, the libraries and the dense figures.
    """
    named = {name for contest in study.contests for name in contest.criteria}
    needs = needs_of(*named) & NEEDS
    start = time.process_time()
    stats = pk.collect(
        subject.model, subject.calibration, groups=subject.groups, needs=needs, loss=subject.loss
    )
    took = {
        "needs": sorted(needs),
        "cpu_seconds": round(time.process_time() - start, 2),
        "held_bytes": stats.peak_bytes,
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": stats.loss,
    }
    values = dict(stats.values)
    for need, gathered in subject.gathered.items():
        values[need] = gathered.values[need]
    return replace(stats, values=values), took


def cut(
    study: Study, subject: Subject, contest: Contest, criterion: str, stats: Statistics, seed: int
) -> list[dict[str, Any]]:
    """A row per sparsity; ``seed`` is None in rows that no seed changes."""
    groups = subject.groups.select(granularity=contest.granularity)
    start = time.process_time()
    scores = pk.score(subject.model, groups, criterion, stats=stats, seed=seed)
    seconds = time.process_time() - start
    rows = []
    for sparsity in study.sparsities:
        plan = pk.allocate(groups, scores, pk.Goal(kind="sparsity", remove=sparsity), criterion=criterion)
        small = subject.carry_out(plan, groups)
        rows.append(
            {
                "contest": contest.title,
                "criterion": criterion,
                "sparsity": sparsity,
                "seed": seed if study.depends_on_seed(criterion) else None,
                "params_left": plan.after.params / plan.before.params,
                "score_cpu_seconds": round(seconds, 3),
                **subject.judge(small),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows
