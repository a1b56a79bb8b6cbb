"""What plans of equal measured speed lose: ours, baselines in the same frame, and Torch-Pruning's.

    python -m benchmarks.target.peers [--model NAME] [--speedup 1.5] [--again]

ONNX Runtime, batch 1, 2 threads. Every way is brought to the same measured speed-up, to 3 %, and is judged
by the increase of a loss on data that none of them saw: of two halves of the calibration data one says what
levers lose, the other judges. Scores are Wanda's, of layers block influence. Nothing is trained;
running statistics of batch norms are recomputed on the first half, whatever the way. Writes
``target_peers.json``, ``target_peers.md`` and its picture in ``docs/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from benchmarks.reconstruction_imagenet import crops
from benchmarks.target.fair import OURS, PEER, Loss, as_fast, divergence, scores, told
from benchmarks.target.fronts import draw_fronts
from benchmarks.target.subjects import SUBJECTS, Subject, smollm2_scorer
from benchmarks.target.where import where
from torch import Tensor, nn

import prunekit as pk
from benchmarks import assets
from prunekit.errors import GoalError, MeasurementError
from prunekit.measure import environment

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
WAYS = (OURS, "uniform", "global", "isomorphic")
THREADS = 2
SPEEDUPS = (1.1, 1.25, 1.5, 2.0)

Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """The losses of a subject.

    Attributes:
        planning: on the data that decides.
        judging: on other data.
        deciding: the data that decides.
        what: the loss in words.
    """

    planning: Loss
    judging: Loss
    deciding: list[pk.Batch]
    what: str


def efficientnet(model: nn.Module) -> Judged:
    """Divergence of the classes from the dense model's, on crops of ten pictures each."""
    pictures = assets.load("imagenet-samples").pictures

    def batches_of(chosen: list[Any], count: int) -> list[pk.Batch]:
        images = torch.cat([crops(picture, count, number) for number, picture in enumerate(chosen)])
        return [_batch(args=(images,))]

    mending, deciding = batches_of(list(pictures[::2]), 10), batches_of(list(pictures[::2]), 2)
    return Judged(
        divergence(model, deciding, mending),
        divergence(model, batches_of(list(pictures[1::2]), 5), mending),
        mending,
        "KL divergence from the dense model's classes on crops of other pictures; batch norms of both "
        "recomputed on the pictures that decide",
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


def smollm2(model: nn.Module) -> Judged:
    """The mean cross-entropy of the next token, in editorials, in windows of 256 tokens.

    Of half of the editorials eight windows give scores, and two of them decide; 16 of the others judge.
    """
    tokenizer = assets.load("smollm2-135m").tokenizer
    texts = assets.load("nyt-editorials")["calibration"]

    def windows(chosen: list[str], count: int) -> Tensor:
        tokens = tokenizer("\n\n".join(chosen), verbose=False).input_ids
        return torch.tensor(tokens[: count * 256]).view(count, 256)

    def loss_on(chosen: Tensor) -> Loss:
        @torch.no_grad()
        def loss(small: nn.Module) -> float:
            found = [
                nn.functional.cross_entropy(small.eval()(two)[:, :-1].flatten(0, 1), two[:, 1:].flatten())
                for two in chosen.split(2)
            ]
            return float(torch.stack(found).mean())

        return loss

    deciding, judging = windows(texts[::2], 8), windows(texts[1::2], 16)
    return Judged(
        loss_on(deciding[:2]),
        loss_on(judging),
        [_batch(args=(two,)) for two in deciding.split(2)],
        "cross-entropy of the next token, in nats, in other editorials",
    )


@dataclass(frozen=True)
class Peered:
    """A model with trained weights: how it is made, how it is judged, and the ways that can prune it."""

    make: Callable[[], Subject]
    judge: Callable[[nn.Module], Judged]
    ways: tuple[str, ...] = WAYS


PEERED: Mapping[str, Peered] = {
    "EfficientNet-Lite0": Peered(SUBJECTS["EfficientNet-Lite0"], efficientnet, (*WAYS, PEER)),
    "MiniLM, 128 tokens": Peered(SUBJECTS["MiniLM, 128 tokens"], minilm),
    "SmolLM2-135M, 256 tokens scored": Peered(smollm2_scorer, smollm2),
}
"""By name."""


def measure(name: str, missing: list[tuple[float, str]], scratch: Path) -> Iterator[Row]:
    """Each speed-up by each way that is missing, one after the other, from one planner."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    subject = PEERED[name].make()
    judged = PEERED[name].judge(subject.model)
    folder = scratch / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    groups = pk.find_groups(pk.trace(subject.model, subject.args, subject.kwargs))
    planner = pk.measure_target(
        subject.model,
        groups=groups,
        scores=scores(subject.model, groups, subject.granularity, judged.deciding),
        criterion="wanda",
        target=pk.Target("onnxruntime", threads=THREADS, batch=1),
        space=pk.Space(subject.granularity),
        loss=judged.planning,
        timing=pk.Timing(real_time=True, folder=folder, tables=scratch / "tables"),
    )
    dense = judged.judging(subject.model)
    for speedup, way in missing:
        row: Row = {"model": name, "asked": speedup, "way": way, "loss": judged.what}
        row["environment"] = environment(THREADS)
        try:
            found = as_fast(planner, speedup, way, next(iter(subject.args), None))
            row |= told(found)
            if found.counts:
                row["increase"] = judged.judging(found.model) - dense
        except (GoalError, MeasurementError) as error:
            row |= {"error": type(error).__name__, "why": str(error)}
        print(json.dumps(row), flush=True)
        yield row


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "# What plans of equal measured speed lose",
        "",
        "`python -m benchmarks.target.peers`: ONNX Runtime, batch 1, 2 threads. Every way is brought to the",
        "same measured speed-up, to 3 %. What came out faster is not judged, but for the knapsack's, where",
        "that is to its disadvantage. Nothing is trained. The loss is judged on data that no way saw.",
        "",
        "| model | asked | way | measured | increase of the loss | MACs left |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        asked = f"| {row['model']} | {row['asked']:g}x | {row['way']} "
        if "increase" not in row:
            lines.append(f"{asked}| {_missed(row)} | | |")
            continue
        left = f"{row['macs_left']:.0%}"
        measured = f"{row['measured']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"{asked}| {measured} | {row['increase']:.4f} | {left} |")
    losses = {row["model"]: row["loss"] for row in rows}
    lines += ["", "![Loss over measured speed-up, by way of choosing](target_peers.svg)"]
    lines += ["", *(f"{model}: {what}." for model, what in losses.items())]
    lines += ["", *where([row["environment"] for row in rows])]
    return "\n".join(lines) + "\n"


def _missed(row: Row) -> str:
    """What came instead of the speed-up that was asked for."""
    if row.get("measured", 0.0) > row["asked"]:
        return f"not judged: {row['measured']:.2f}"
    return "not reached" if _told(row) else "too noisy to tell"


def _told(row: Row) -> bool:
    """Whether the machine was quiet enough for an answer; a row that has none is missing."""
    return row.get("error") != MeasurementError.__name__


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description="What plans of equal measured speed lose")
    parser.add_argument("--model", choices=PEERED, action="append")
    parser.add_argument("--speedup", type=float, action="append")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    store = OUT / "target_peers.json"
    rows: list[Row] = json.loads(store.read_text()) if store.exists() else []
    scratch = Path(os.environ.get("PRUNEKIT_SCRATCH") or Path(tempfile.gettempdir()) / "prunekit-target")
    for name in given.model or PEERED:
        wanted = [(asked, way) for asked in given.speedup or SPEEDUPS for way in PEERED[name].ways]
        known = {(row["asked"], row["way"]) for row in rows if row["model"] == name and _told(row)}
        missing = [pair for pair in wanted if given.again or pair not in known]
        for row in measure(name, missing, scratch) if missing else ():
            rows = _with(rows, row)
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (OUT / "target_peers.md").write_text(page(rows))
            draw_fronts(rows)


def _with(rows: list[Row], new: Row) -> list[Row]:
    """The rows with a new one, which takes the place of an older one of its kind."""
    kind = itemgetter("model", "asked", "way")
    return [row for row in rows if kind(row) != kind(new)] + [new]


if __name__ == "__main__":
    main()
