"""What plans of equal measured speed lose: ours, baselines in the same frame, and Torch-Pruning's.

    python -m benchmarks.target.peers [--model NAME] [--speedup 1.5] [--again]

ONNX Runtime, batch 1, 2 threads. Every way is brought to the same measured speed-up, to 3 %, and is judged
by the increase of a loss on data that none of them saw: of two halves of the calibration data the first says
what levers lose, the second judges. Scores are Wanda's, of layers block influence. Nothing is trained;
running statistics of batch norms are recomputed on the first half, whatever the way. Writes
``docs/benchmarks/target_peers.json`` and ``target_peers.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.reconstruction_imagenet import crops
from benchmarks.target.subjects import SUBJECTS, Subject
from torch import Tensor, nn

import prunekit as pk
from benchmarks import assets
from prunekit.errors import PrunekitError
from prunekit.targeting import Planner
from prunekit.targeting.measuring import measure_beside

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
WAYS = ("knapsack", "uniform", "global", "isomorphic")
PEER = "Torch-Pruning, uniform"
TOLERANCE = 0.03
TRIES = 8

Loss = Callable[[nn.Module], float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """The losses of a subject.

    Attributes:
        planning: on the data that decides.
        judging: on other data.
        batches: the data that decides.
        what: the loss in words.
    """

    planning: Loss
    judging: Loss
    batches: list[pk.Batch]
    what: str


def efficientnet(model: nn.Module) -> Judged:
    """Divergence of the classes from the dense model's, on crops of ten pictures each."""
    pictures = assets.load("imagenet-samples").pictures

    def images_of(chosen: list[Any], count: int) -> Tensor:
        return torch.cat([crops(picture, count, number) for number, picture in enumerate(chosen)])

    def loss_on(images: Tensor) -> Loss:
        with torch.no_grad():
            dense = model.eval()(images).log_softmax(1)

        @torch.no_grad()
        def loss(small: nn.Module) -> float:
            found = small.eval()(images).log_softmax(1)
            return float(nn.functional.kl_div(found, dense, reduction="batchmean", log_target=True))

        return loss

    deciding, judging = list(pictures[::2]), list(pictures[1::2])
    return Judged(
        loss_on(images_of(deciding, 2)),
        loss_on(images_of(judging, 5)),
        [_batch(args=(images_of(deciding, 10),))],
        "KL divergence from the dense model's classes, crops of other pictures",
    )


def _batch(args: tuple[Tensor, ...] = (), kwargs: Mapping[str, Tensor] | None = None) -> pk.Batch:
    count = len([*args, *(kwargs or {}).values()][0])
    return pk.Batch(args=args, kwargs=kwargs or {}, ids=tuple(map(str, range(count))))


def minilm(model: nn.Module) -> Judged:
    """One minus the cosine to the dense embeddings, on movie reviews."""
    texts = [text for text in _texts() if len(text.split()) > 4][:64]
    tokenizer = assets.load("minilm")

    def tokens_of(chosen: list[str]) -> dict[str, Tensor]:
        return dict(
            tokenizer.tokenizer(
                chosen,
                padding="max_length",
                truncation=True,
                max_length=128,
                return_tensors="pt",
                return_token_type_ids=False,
            )
        )

    def loss_on(tokens: dict[str, Tensor]) -> Loss:
        with torch.no_grad():
            dense = model.eval()(**tokens)

        @torch.no_grad()
        def loss(small: nn.Module) -> float:
            return float((1 - (small.eval()(**tokens) * dense).sum(1)).mean())

        return loss

    deciding, judging = tokens_of(texts[::2]), tokens_of(texts[1::2])
    return Judged(
        loss_on(deciding),
        loss_on(judging),
        [_batch(kwargs=deciding)],
        "one minus the cosine to the dense embeddings of other reviews",
    )


def _texts() -> list[str]:
    return [example.text for example in assets.load("movie-reviews")["calibration"]]


JUDGED: Mapping[str, Callable[[nn.Module], Judged]] = {
    "EfficientNet-Lite0": efficientnet,
    "MiniLM, 128 tokens": minilm,
}


def measure(name: str, speedup: float, scratch: Path) -> list[Row]:
    """Every way at one speed."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    subject = SUBJECTS[name]()
    judged = JUDGED[name](subject.model)
    folder = scratch / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    groups = pk.find_groups(pk.trace(subject.model, subject.args, subject.kwargs))
    planner = pk.measure_target(
        subject.model,
        groups=groups,
        scores=_scores(subject, groups, judged.batches),
        criterion="wanda",
        target=pk.Target("onnxruntime", threads=2, batch=1),
        space=pk.Space(subject.granularity),
        loss=judged.planning,
        timing=pk.Timing(real_time=True, folder=folder, tables=scratch / "tables"),
    )
    dense = judged.judging(subject.model)
    rows = []
    for way in WAYS:
        row: Row = {"model": name, "way": way, "asked": speedup, "loss": judged.what}
        try:
            reached = planner.reach(pk.Goal("speedup", reach=speedup, tolerance=TOLERANCE), allocation=way)
        except PrunekitError as error:
            rows.append(row | {"why": str(error)[:300]})
            continue
        small = _mended(planner.remove(reached)[0].model, judged)
        found = reached.comparison.speedup
        rows.append(
            row
            | {
                "measured": round(found.median, 4),
                "low": round(found.low, 4),
                "high": round(found.high, 4),
                "increase": judged.judging(small) - dense,
                "macs_left": reached.plan.after.macs / reached.plan.before.macs,
            }
        )
    if subject.granularity == ("channel",):
        rows.append(_peer(planner, subject.args, judged, dense, name, speedup))
    return rows


def _scores(subject: Subject, groups: pk.Groups, batches: list[pk.Batch]) -> Mapping[str, Any]:
    chosen = groups.select(granularity=subject.granularity)
    needs = pk.needs_of("wanda", "block_influence")
    stats = pk.collect(subject.model, batches, groups=chosen, needs=needs)
    found: dict[str, Any] = {}
    for criterion, depth in (("wanda", False), ("block_influence", True)):
        some = [group for group in chosen if group.is_depth == depth]
        if some:
            found |= pk.score(subject.model, some, criterion, stats=stats)
    return found


def _mended(model: nn.Module, judged: Judged) -> nn.Module:
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        pk.recalibrate_norms(model, judged.batches)
    return model.eval()


def _peer(
    planner: Planner, args: tuple[Any, ...], judged: Judged, dense: float, name: str, speedup: float
) -> Row:
    """Torch-Pruning at the uniform channel sparsity that measures the same speed, by bisection."""
    row: Row = {"model": name, "way": PEER, "asked": speedup, "loss": judged.what}
    with planner.rig.quietly():
        whole = planner.rig.open_artifact(planner.rig.artifact(planner.model, "dense"))
    low, high = 0.0, 0.95
    for _ in range(TRIES):
        sparsity = (low + high) / 2
        small = _mended(_uniform(planner.model, args[0], sparsity), judged)
        artifact = planner.rig.artifact(small, f"peer-{sparsity:.5f}")
        with planner.rig.quietly():
            found = measure_beside(whole, planner.rig.open_artifact(artifact), tolerance=TOLERANCE).speedup
        row |= {
            "measured": round(found.median, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
            "increase": judged.judging(small) - dense,
            "channels_removed": sparsity,
        }
        if abs(found.median / speedup - 1) <= TOLERANCE:
            return row
        low, high = (sparsity, high) if found.median < speedup else (low, sparsity)
    return row | {"why": f"no sparsity measured within {TOLERANCE:.0%}"}


def _uniform(model: nn.Module, example: Tensor, sparsity: float) -> nn.Module:
    import torch_pruning as tp

    small = copy.deepcopy(model).eval()
    classifier = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.MagnitudePruner(
        small,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[classifier],
    )
    pruner.step()
    return small.eval()


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "# What plans of equal measured speed lose",
        "",
        "`python -m benchmarks.target.peers`: ONNX Runtime, batch 1, 2 threads. Every way is brought to the",
        "same measured speed-up, to 3 %; nothing is trained. The loss is judged on data that no way saw.",
        "",
        "| model | asked | way | measured | increase of the loss | MACs left |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        asked = f"| {row['model']} | {row['asked']:g}x | {row['way']} "
        if "increase" not in row:
            lines.append(f"{asked}| not reached | | |")
            continue
        left = f"{row['macs_left']:.0%}" if "macs_left" in row else ""
        measured = f"{row['measured']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"{asked}| {measured} | {row['increase']:.4f} | {left} |")
    losses = {row["model"]: row["loss"] for row in rows}
    lines += ["", *(f"{model}: {what}." for model, what in losses.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description="What plans of equal measured speed lose")
    parser.add_argument("--model", choices=JUDGED, action="append")
    parser.add_argument("--speedup", type=float, action="append")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    store = OUT / "target_peers.json"
    rows: list[Row] = json.loads(store.read_text()) if store.exists() else []
    scratch = Path(os.environ.get("PRUNEKIT_SCRATCH") or Path(tempfile.gettempdir()) / "prunekit-target")
    for name in given.model or JUDGED:
        for speedup in given.speedup or (1.5, 2.0):
            mine = [row for row in rows if row["model"] == name and row["asked"] == speedup]
            if mine and not given.again:
                continue
            rows = [row for row in rows if row not in mine] + measure(name, speedup, scratch)
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (OUT / "target_peers.md").write_text(page(rows))
            print(json.dumps(rows[-len(WAYS) :], indent=None), flush=True)


if __name__ == "__main__":
    main()
