"""The convolutional network: handwritten digits, a parent per seed, and a short recovery after each cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.criteria.study import Contest, Study, Subject, of_widths
from torch import nn

import prunekit as pk
from prunekit.importance import Movement, Statistics
from prunekit.recover import TrainingSettings, train
from prunekit.types import WIDTHS
from prunekit.workload import Workload, load_workload, predict

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits" / "workload.py"
WIDTH_OF_STAGES = (24, 48, 96)
CALIBRATION_EXAMPLES = 96
PARENT = {"epochs": 10, "batch_size": 32, "learning_rate": 0.02, "warmup": 0.1}
RECOVERY = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, "warmup": 0.1}


def prepare(seed: int) -> Subject:
    workload = load_workload(EXAMPLE)
    torch.manual_seed(seed)
    parent = type(workload.build())(WIDTH_OF_STAGES)
    train(parent, workload, TrainingSettings(**PARENT, seed=seed))
    parent.eval()
    example = workload.example_inputs(2)
    groups = pk.find_groups(pk.trace(parent, example.args, example.kwargs)).select(granularity=WIDTHS)
    split = workload.splits.deciding.calibration
    drawn = np.random.default_rng(seed).choice(len(split), CALIBRATION_EXAMPLES, replace=False)

    def judge(model: nn.Module) -> dict[str, float]:
        cut = accuracy(model.eval(), workload)
        recovered = copy.deepcopy(model)
        train(recovered, workload, TrainingSettings(**RECOVERY, seed=seed))
        return {"cut": cut, "recovered": accuracy(recovered.eval(), workload)}

    return Subject(
        model=parent,
        groups=groups,
        calibration=[split.batch(some.tolist()) for some in np.array_split(drawn, 3)],
        loss=workload.loss,
        judge=judge,
        carry_out=lambda plan, chosen: pk.remove(parent, plan, chosen).model,
        gathered={"movement": movement(parent, groups, workload, seed)},
    )


def accuracy(model: nn.Module, workload: Workload) -> float:
    """Share of the test split that is classified rightly."""
    return float(predict(model, workload.splits.open_test(), workload)["correct"].mean())


def movement(parent: nn.Module, groups: pk.Groups, workload: Any, seed: int) -> Statistics:
    """What one more epoch of training would move, on a copy."""
    twin = copy.deepcopy(parent).train()
    gathered = Movement(twin, groups)
    optimizer = torch.optim.SGD(twin.parameters(), lr=RECOVERY["learning_rate"])
    for batch in workload.splits.train.batches(RECOVERY["batch_size"], shuffle_seed=seed):
        optimizer.zero_grad()
        workload.loss(twin(*batch.args), batch).backward()
        gathered.update()
        optimizer.step()
    return gathered.statistics()


STUDY = Study(
    name="Digits network",
    about="Residual convolutional network of 24, 48 and 96 channels on 8 x 8 pictures. Accuracy on the test "
    f"split (n = 629) after the cut, and after {RECOVERY['epochs']} epochs of recovery, which the parent "
    "gets as well for comparison. A seed makes the parent, draws "
    f"{CALIBRATION_EXAMPLES} pictures of the calibration split and seeds the recovery. `movement` was "
    "accumulated over one more epoch of the parent's training, on a copy.",
    prepare=prepare,
    contests=(Contest("channels", tuple(sorted(WIDTHS)), of_widths("bn_scale", "movement")),),
    sparsities=(0.3, 0.5, 0.7),
    figures={"cut": "{:.1%}", "recovered": "{:.1%}"},
    seed_makes_the_model=True,
)
