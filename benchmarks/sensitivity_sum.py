"""How well the increases of single levers, added up, foretell the increase of a plan that pulls many.

    python -m benchmarks.sensitivity_sum [--model NAME] [--plans 20] [--batches 1]

Every level of every lever is measured alone, then joint plans, drawn at random: each has a depth of its own,
and each lever a level drawn around it. Prints a row of JSON for each model: over the plans, Spearman's rank
correlation of the joint increase with the sum of the single ones, measured or modelled from fewer points;
and how far the modelled curves lie from the levels that they were not calibrated with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from benchmarks.criteria import digits, minilm
from benchmarks.criteria.study import Subject
from scipy.stats import spearmanr
from torch import Tensor, nn

import prunekit as pk
from prunekit.plan.levers import Levers, find_levers
from prunekit.plan.losses import Sensitivities, level_losses, loss_curves, removed_shares
from prunekit.surgery import measure_unit_sensitivity
from prunekit.surgery.remove import reduced_graph
from prunekit.surgery.unit_sensitivity import middle_and_last
from prunekit.types import Scores

MODELS = {
    "digits network, 24 to 96 channels": (digits, ("channel", "branch")),
    "all-MiniLM-L6-v2": (minilm, ("head", "neuron", "layer")),
}
DEPTHS = {"from shallow to deep": (0.05, 0.5), "all equally deep": (0.2, 0.2)}
"""Of plans, from the first to the last: between none and all levels of a width; a layer goes with a third of
the probability."""


def subject_of(name: str, batches: int) -> tuple[Subject, pk.Groups]:
    """The model with its first calibration batches, and the groups to prune."""
    module, kinds = MODELS[name]
    subject = module.prepare(0)
    chosen = list(subject.calibration[:batches])
    if module is minilm:
        chosen = [halved(batch) for batch in chosen]
    subject = replace(subject, calibration=chosen)
    batch = subject.calibration[0]
    args = tuple(value[:2] for value in batch.args)
    kwargs = {key: value[:2] for key, value in batch.kwargs.items()}
    found = pk.find_groups(pk.trace(subject.model, args, kwargs))
    return subject, found.select(granularity=kinds, ignore="encoder.pooler.*" if module is minilm else ())


def halved(batch: pk.Batch) -> pk.Batch:
    """Every second text and copy of the encoder's."""
    return replace(
        batch,
        kwargs={key: value[::2] for key, value in batch.kwargs.items()},
    )


def loss_of(subject: Subject, name: str) -> Callable[[nn.Module], float]:
    """The subject's own loss; for the encoder one minus the cosine to the dense embeddings.

    Its own loss, that a text finds its thinned copy, falls where heads go: words that know less of each
    other make copies more alike.
    """

    def outputs(model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [model.eval()(*batch.args, **batch.kwargs) for batch in subject.calibration]

    dense = outputs(subject.model)

    def loss(model: nn.Module) -> float:
        found = outputs(model)
        if MODELS[name][0] is minilm:
            parts = [1 - (one * other).sum(1).mean() for one, other in zip(found, dense, strict=True)]
        else:
            parts = [subject.loss(one, batch) for one, batch in zip(found, subject.calibration, strict=True)]
        return float(torch.stack(parts).mean())

    return loss


def scores_of(subject: Subject, groups: pk.Groups) -> Scores:
    """First-order estimates of what removal costs: of widths by weights, of layers and branches by gates."""
    needs = pk.needs_of("taylor", "layer_gate")
    stats = pk.collect(subject.model, subject.calibration, groups=groups, needs=needs, loss=subject.loss)
    found: dict[str, np.ndarray] = {}
    for criterion, depth in (("taylor", False), ("layer_gate", True)):
        some = [group for group in groups if group.is_depth == depth]
        found |= pk.score(subject.model, some, criterion, stats=stats)
    return found


def drawn(levers: Levers, plans: int, depths: tuple[float, float]) -> list[np.ndarray]:
    """Levels of each lever, ``[levers]``, for each plan."""
    random = np.random.default_rng(0)
    found = []
    for depth in np.linspace(*depths, plans):
        chances = [depth / 3 if lever.unit is not None else depth for lever in levers]
        found.append(random.binomial(levers.last, chances))
    return found


def of_plans(
    chosen: list[np.ndarray],
    joint_of: Callable[[np.ndarray], float],
    tables: Mapping[str, tuple[np.ndarray, ...]],
) -> dict[str, object]:
    """What the plans lose, and how each table's sums follow it; the first table is what was measured."""
    joint = np.array([joint_of(levels) for levels in chosen])
    sums = {
        way: np.array([sum(own[at] for own, at in zip(losses, levels, strict=True)) for levels in chosen])
        for way, losses in tables.items()
    }
    measured = next(iter(sums.values()))
    return {
        "joint increase": [round(float(q), 4) for q in np.quantile(joint, (0, 0.5, 1))],
        "sum over joint, median": round(float(np.median(measured / joint)), 2),
        "rank correlation": {way: round(float(spearmanr(found, joint)[0]), 3) for way, found in sums.items()},
    }


def figures(name: str, plans: int, batches: int) -> dict[str, object]:
    subject, groups = subject_of(name, batches)
    scores, loss = scores_of(subject, groups), loss_of(subject, name)
    levers = find_levers(groups, scores)
    began = time.perf_counter()
    every = measure_unit_sensitivity(
        subject.model, levers, groups, loss, levels=lambda lever: range(1, len(lever))
    )
    seconds = time.perf_counter() - began
    few: Sensitivities = {
        lever.name: {
            share: every[lever.name][share] for share in removed_shares(lever)[list(middle_and_last(lever))]
        }
        for lever in levers
    }
    halves = {name: few[name] for name in list(few)[::2]}
    dense = loss(subject.model)
    tables = {
        "all levels measured": level_losses(levers, scores, every),
        "middle and last measured": level_losses(levers, scores, few),
        "every other lever measured": level_losses(levers, scores, halves),
        "scores alone": level_losses(levers, scores),
    }

    def joint_of(levels: np.ndarray) -> float:
        return loss(reduced_graph(subject.model, levers.masks(levels), groups)) - dense

    between = [
        abs(curve.losses[level] - max(every[lever.name][share], 0.0)) / curve.losses[-1]
        for lever, curve in zip(levers, loss_curves(levers, scores, few), strict=True)
        for level, share in enumerate(removed_shares(lever))
        if level and level not in middle_and_last(lever) and curve.losses[-1] > 0
    ]
    return {
        "model": name,
        "plans": plans,
        "batches": batches,
        "levers": len(levers),
        "measured": sum(map(len, every.values())),
        "seconds": round(seconds, 1),
        "dense loss": round(dense, 4),
        "plans drawn": {
            drawing: of_plans(drawn(levers, plans, depths), joint_of, tables)
            for drawing, depths in DEPTHS.items()
        },
        "error between, of the last": [round(float(q), 3) for q in np.quantile(between, (0.5, 0.9))],
    }


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--batches", type=int, default=3, help="of the calibration data, to measure on")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in [asked.model] if asked.model else MODELS:
        print(json.dumps(figures(name, asked.plans, asked.batches)), flush=True)


if __name__ == "__main__":
    main()
