"""One-shot structural pruning of EfficientNet-Lite0 with and without reconstruction, on real pictures.

    python -m benchmarks.reconstruction_imagenet [--out docs/benchmarks]

Two folds of ten labelled pictures: what is calibrated on crops of one is judged on the other, so that every
picture is judged by a model that never saw it. Nothing is trained. Writes JSON and the Markdown page.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.assets.efficientnet import preprocess
from scipy import stats
from torch import Tensor, nn

import prunekit as pk
from benchmarks import assets
from prunekit.importance import needs_of
from prunekit.measure import environment
from prunekit.reconstruction import reconstruct

CRITERIA = ("l2", "wanda")
SPARSITIES = (0.05, 0.1, 0.2, 0.3)
CALIBRATION_CROPS, TEST_CROPS = 10, 5
SMALLEST = 0.7
AT_ONCE = 10


def crops(picture: np.ndarray, count: int, seed: int) -> Tensor:
    """``[count, 3, 224, 224]``: squares of 0.7 to 1 of the shorter side, anywhere, half of them mirrored."""
    generator = np.random.default_rng(seed)
    height, width, _ = picture.shape
    found = []
    for _ in range(count):
        side = round(generator.uniform(SMALLEST, 1) * min(height, width))
        top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
        square = picture[top : top + side, left : left + side]
        found.append(preprocess(square[:, ::-1] if generator.random() < 0.5 else square))
    return torch.stack(found)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(some) for some in images.split(AT_ONCE)])


class Fold:
    """Ten pictures to calibrate on, the ten others to judge on, and what the dense model says of those."""

    def __init__(self, dense: nn.Module, pictures: Any, number: int) -> None:
        numbers = range(len(pictures.labels))
        self.judged = [index for index in numbers if index % 2 == number]
        seen = [index for index in numbers if index % 2 != number]
        of_all = torch.cat([crops(pictures.pictures[i], CALIBRATION_CROPS, seed=i) for i in seen])
        mixed = of_all[torch.from_numpy(np.random.default_rng(number).permutation(len(of_all)))]
        self.calibration = [pk.Batch(args=(some,)) for some in mixed.split(AT_ONCE)]
        self.labels = torch.tensor([pictures.labels[index] for index in self.judged])
        self.whole = torch.stack([preprocess(pictures.pictures[index]) for index in self.judged])
        many = [crops(pictures.pictures[index], TEST_CROPS, seed=1000 + index) for index in self.judged]
        self.crops = torch.cat(many)
        self.dense = logits(dense, self.crops)

    def judge(self, model: nn.Module) -> list[dict[str, float]]:
        """A row per picture: top-1 and top-5 of the picture, agreement and relative error over its crops."""
        best = logits(model, self.whole).topk(5).indices
        found = logits(model, self.crops)
        agree = (found.argmax(1) == self.dense.argmax(1)).double().view(-1, TEST_CROPS).mean(1)
        apart = (found - self.dense).double().square().sum(1).view(-1, TEST_CROPS).sum(1)
        size = self.dense.double().square().sum(1).view(-1, TEST_CROPS).sum(1)
        return [
            {
                "picture": picture,
                "top1": float(best[row, 0] == self.labels[row]),
                "top5": float((best[row] == self.labels[row]).any()),
                "agreement": float(agree[row]),
                "error": float(apart[row] / size[row]),
            }
            for row, picture in enumerate(self.judged)
        ]


def measure() -> list[dict[str, Any]]:
    """One row per criterion, sparsity, way and picture."""
    model, pictures = assets.load("efficientnet-lite0"), assets.load("imagenet-samples")
    folds = [Fold(model, pictures, number) for number in (0, 1)]
    groups = pk.find_groups(pk.trace(model, folds[0].whole[:2])).select(granularity="channel")
    rows: list[dict[str, Any]] = []
    for fold in folds:
        rows += [
            {"criterion": "dense", "sparsity": 0.0, "way": "dense", "macs_left": 1.0, **row}
            for row in fold.judge(model)
        ]
        for criterion in CRITERIA:
            found = pk.collect(model, fold.calibration, groups=groups, needs=needs_of(criterion))
            scores = pk.score(model, groups, criterion, stats=found)
            for sparsity in SPARSITIES:
                plan = pk.allocate(
                    groups, scores, pk.Goal(kind="sparsity", remove=sparsity), criterion=criterion
                )
                rows += of_plan(model, plan, groups, fold)
    return rows


def of_plan(model: nn.Module, plan: pk.PruningPlan, groups: pk.Groups, fold: Fold) -> list[dict[str, Any]]:
    removal = pk.remove(model, plan, groups)
    start = time.process_time()
    updated = reconstruct(model, removal, plan, groups, fold.calibration)
    seconds = time.process_time() - start
    about = {
        "criterion": plan.criterion,
        "sparsity": plan.goal.remove,
        "macs_left": plan.after.macs / plan.before.macs,
        "cpu_seconds": round(seconds, 1),
        "held_bytes": updated.peak_bytes,
    }
    rows = []
    ways = {
        "cut": removal.model,
        "norms": with_norms_of(removal.model, fold.calibration),
        "reconstructed": updated.model,
        "both": with_norms_of(updated.model, fold.calibration),
    }
    for way, small in ways.items():
        rows += [about | {"way": way} | row for row in fold.judge(small.eval())]
    print(json.dumps(about | {way: means(rows, way) for way in ways}), flush=True)
    return rows


@torch.no_grad()
def with_norms_of(model: nn.Module, calibration: list[pk.Batch]) -> nn.Module:
    """A copy whose batch norms have the mean and variance of the calibration data, over all batches alike."""
    twin = copy.deepcopy(model).eval()
    norms = [part for part in twin.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in calibration:
        twin(*batch.args)
    return twin.eval()


def means(rows: list[dict[str, Any]], way: str) -> dict[str, float]:
    mine = [row for row in rows if row["way"] == way]
    return {
        key: round(float(np.mean([row[key] for row in mine])), 4)
        for key in ("top1", "top5", "agreement", "error")
    }


PAGE = """# What reconstruction gains on EfficientNet-Lite0

`python -m benchmarks.reconstruction_imagenet`; the rows per picture and the environment are in
`reconstruction_imagenet.json`. Real ImageNet weights; channels go in one shot, the same share of every group;
no training. The 20 labelled sample pictures are in two folds: calibrated on {calibration} crops of each
picture of one fold, judged on the other, so that every picture is judged by a model that never saw it. Ten
pictures are little for 4.7 million parameters, and **with 20 pictures one more is 5 points**.

- ways: `cut` is the removal alone; `norms` computes the batch norms' means and variances anew on the
  calibration crops; `reconstructed` is `pk.reconstruct` on them, in sequence; `both` is reconstruction,
  then the norms.
- top-1 and top-5: pictures named rightly, of 20; for the first with the 95 % interval of Clopper and Pearson.
- agreement: share of {test} crops of each judged picture on which the dense model's first class is still
  the first, with the 95 % interval of the bootstrap over pictures.
- error: squared difference of the logits to the dense model's over their squares on these crops, in the
  mean over pictures; 1 is what a model that always says zero has.

"""


def page(rows: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    text = PAGE.format(calibration=CALIBRATION_CROPS, test=TEST_CROPS)
    lines = [
        "| criterion | channels removed | MACs left | way | top-1 of 20 | top-5 of 20 | agreement | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["criterion"], row["sparsity"], row["way"]) for row in rows):
        mine = [row for row in rows if (row["criterion"], row["sparsity"], row["way"]) == key]
        lines.append(line(*key, mine))
    took = [row["cpu_seconds"] for row in rows if "cpu_seconds" in row]
    held = max(row["held_bytes"] for row in rows if "held_bytes" in row)
    return (
        text
        + "\n".join(lines)
        + f"\n\nReconstruction took {min(took):.0f} to {max(took):.0f} CPU seconds on one "
        f"thread and held {held / 1e6:,.0f} MB at most.\n"
    )


def line(criterion: str, sparsity: float, way: str, mine: list[dict[str, Any]]) -> str:
    right = round(sum(row["top1"] for row in mine))
    sure = stats.binomtest(right, len(mine)).proportion_ci(method="exact")
    within = round(sum(row["top5"] for row in mine))
    agreed = np.array([row["agreement"] for row in mine])
    if np.ptp(agreed):
        interval = stats.bootstrap((agreed,), np.mean, rng=0, method="percentile").confidence_interval
    else:
        interval = (agreed[0], agreed[0])
    cells = [
        criterion,
        f"{sparsity:.0%}",
        f"{np.mean([row['macs_left'] for row in mine]):.0%}",
        way,
        f"{right} ({sure.low:.0%} to {sure.high:.0%})",
        f"{within}",
        f"{agreed.mean():.0%} ({interval[0]:.0%} to {interval[1]:.0%})",
        f"{np.mean([row['error'] for row in mine]):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure()
    asked.out.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(asked.threads), "rows": rows}
    (asked.out / "reconstruction_imagenet.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "reconstruction_imagenet.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
