"""The decoder: SmolLM2-135M on editorials of the New York Times."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from benchmarks.assets.smollm2 import LanguageModel
from benchmarks.criteria.study import OF_LAYERS, Contest, Study, Subject, of_widths
from torch import Tensor, nn

import prunekit as pk
from benchmarks import assets
from prunekit.surgery.remove import reduced_graph

TOKENS = 256
CALIBRATION_WINDOWS, TEST_WINDOWS = 4, 4
AT_ONCE = 2


@functools.cache
def loaded() -> tuple[LanguageModel, pk.Groups]:
    """The checkpoint and its groups."""
    language = assets.load("smollm2-135m")
    return language, groups_of(language, TOKENS)


def groups_of(language: LanguageModel, tokens: int) -> pk.Groups:
    """What is pruned, traced with two examples of so many tokens."""
    example = {"input_ids": windows("calibration")[:2, :tokens], "use_cache": False}
    groups = pk.find_groups(pk.trace(language.model, kwargs=example))
    return groups.select(granularity=["head", "neuron", "layer"])


@functools.cache
def windows(split: str) -> Tensor:
    """``[windows, TOKENS]``: the editorials of a split, joined by empty lines, without an incomplete end."""
    language = assets.load("smollm2-135m")
    text = "\n\n".join(assets.load("nyt-editorials")[split])
    ids = torch.tensor(language.tokenizer(text).input_ids)
    return ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)


def loss(outputs: Any, batch: pk.Batch) -> Tensor:
    """Mean cross-entropy of the next token."""
    predicted, wanted = outputs.logits[:, :-1], batch.target[:, 1:]
    return nn.functional.cross_entropy(predicted.flatten(0, 1), wanted.flatten())


def batches(ids: Tensor) -> list[pk.Batch]:
    return [
        pk.Batch(args=(), kwargs={"input_ids": some, "use_cache": False}, target=some)
        for some in ids.split(AT_ONCE)
    ]


@torch.no_grad()
def judge(model: nn.Module) -> dict[str, float]:
    """Perplexity on the first windows of the test split."""
    some = batches(windows("test")[:TEST_WINDOWS])
    return {"perplexity": math.exp(np.mean([float(loss(model(**b.kwargs), b)) for b in some]))}


def prepare(seed: int) -> Subject:
    language, groups = loaded()
    everything = windows("calibration")
    drawn = np.random.default_rng(seed).choice(len(everything), CALIBRATION_WINDOWS, replace=False)
    return Subject(
        model=language.model,
        groups=groups,
        calibration=batches(everything[torch.from_numpy(drawn)]),
        loss=loss,
        judge=judge,
        carry_out=lambda plan, groups: reduced_graph(language.model, plan.keep_mask(), groups),
    )


STUDY = Study(
    name="SmolLM2-135M",
    about=f"Decoder, 30 layers. Perplexity (lower is better) on {TEST_WINDOWS} windows of {TOKENS} tokens "
    "of the editorials' test split; calibrated "
    f"on {CALIBRATION_WINDOWS} windows of the calibration split, which the seed draws. Criteria without data "
    "are the same for every seed and stand without a range. The three query heads of a key-value group lose "
    "the same number: none at 10 %, one of three at 20 % and 30 %.",
    prepare=prepare,
    contests=(
        Contest("heads and neurons", ("head", "neuron"), of_widths()),
        Contest("layers", ("layer",), OF_LAYERS),
    ),
    sparsities=(0.1, 0.2, 0.3),
    figures={"perplexity": "{:,.1f}"},
    lower_is_better=True,
    prove_with=lambda: groups_of(loaded()[0], 16),
)
