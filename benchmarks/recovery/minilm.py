"""all-MiniLM-L6-v2, fine-tuned to tell whether people rated a snippet of a film review above zero."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from benchmarks.assets.minilm import MiniLM
from benchmarks.assets.reviewed_texts import Rated
from benchmarks.recovery.cells import Cell
from benchmarks.recovery.cuts import Units, traced
from benchmarks.recovery.parents import Parent, parent
from benchmarks.recovery.subject import Subject
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import assets
from prunekit.recover import TrainingSettings
from prunekit.workload import Batch, ImageClassification, Split, Splits

TOKENS = 32
"""Texts are cut or padded to this; three of four are no longer."""

EXAMPLES = {"train": 3000, "calibration": 64, "validation": 500, "test": 1590}
"""Snippets of each split that are used, drawn once: training costs a core minutes."""

PARENT = TrainingSettings(
    epochs=2, batch_size=32, learning_rate=1e-4, optimizer="adamw", weight_decay=0.01, warmup=0.1
)
STAGES = ((0.5, 1.0), (0.5, 0.1))
"""The last learning rate is a tenth of the peak: a hundredth would change next to nothing with AdamW."""

BUDGET = 0.4

PRECISION = "medium"
"""Of float32 matrix products: operands rounded to bfloat16 where the CPU has it, sums in float32."""


class Classifier(nn.Module):
    """The encoder, the mean over the tokens of each text, and two logits."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[batch, 2]`` from ``[batch, tokens]`` int64 each."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        return self.head((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


def build() -> Classifier:
    """The trained encoder with a new head; embeddings of words and positions are not trained."""
    encoder = _fresh().model.encoder
    encoder.pooler = None
    encoder.embeddings.requires_grad_(False)
    return Classifier(encoder, encoder.config.hidden_size)


def _fresh() -> MiniLM:
    return assets.load("minilm")


@functools.cache
def workload() -> ImageClassification:
    """Snippets as (tokens, mask, whether the rating is above zero)."""
    tokenizer = _fresh().tokenizer

    def split(name: str, rows: Sequence[Rated]) -> Split:
        given = tokenizer(
            [row.text for row in rows],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        above = torch.tensor([int(row.rating > 0) for row in rows])
        return Split(name, TensorDataset(given["input_ids"], given["attention_mask"], above))

    texts = assets.load("movie-reviews")
    splits = {name: split(name, drawn(texts[name], count)) for name, count in EXAMPLES.items()}
    return ImageClassification(
        name="movie-reviews",
        build=build,
        splits=Splits(**splits),
        class_names=("not above zero", "above zero"),
    )


def drawn(rows: Sequence[Rated], count: int) -> list[Rated]:
    """``count`` rows in a random order that is always the same: the file has the positive ones first."""
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:count]]


def minilm_parent(seed: int) -> Parent:
    torch.manual_seed(seed)
    return parent("minilm", build(), workload(), replace(PARENT, seed=seed), STAGES)


def subject(seed: int) -> Subject:
    """The parent of a seed, and what may go: heads, feed-forward neurons, layers."""
    torch.set_float32_matmul_precision(PRECISION)
    dense = minilm_parent(seed)
    calibration = tuple(workload().splits.calibration.batches(PARENT.batch_size))
    example = Batch(args=tuple(part[:2] for part in calibration[0].args))
    cost = traced(dense.model, example).cost()

    def units(granularity: str, criterion: str) -> Units:
        return Units(granularity, criterion, calibration, example, cost)

    return Subject(
        parent=dense,
        workload=workload(),
        training=replace(PARENT, seed=seed),
        example=example,
        cuts={
            "heads": units("head", "wanda"),
            "ffn": units("neuron", "wanda"),
            "layers": units("layer", "block_influence"),
        },
        seed=seed,
    )


LOST = {"heads": 0.35, "ffn": 0.5, "layers": 0.5}
"""Four of twelve heads of every layer, half of the feed-forward neurons, three of six layers."""

HARDEST = Cell("layers", LOST["layers"], budget=BUDGET)

BLOCKS: tuple[tuple[Cell, ...], ...] = (
    (Cell("nothing", 0.0, budget=0.0), HARDEST),
    (replace(HARDEST, rates="last"), replace(HARDEST, rates="peak")),
    (replace(HARDEST, rates="peak", distilled=True),),
    tuple(Cell(kind, LOST[kind], budget=BUDGET, rates="middle") for kind in LOST),
    tuple(Cell(kind, LOST[kind], budget=BUDGET) for kind in ("heads", "ffn")),
    (replace(HARDEST, distilled=True),),
    tuple(Cell(kind, LOST[kind], budget=BUDGET, distilled=True) for kind in ("heads", "ffn")),
    tuple(Cell(kind, LOST[kind], budget=BUDGET, rates="last") for kind in ("heads", "ffn")),
    tuple(
        Cell(kind, LOST[kind], budget=BUDGET, rates="sgd", distilled=taught)
        for kind in LOST
        for taught in (False, True)
    ),
)
"""What is measured for a seed, in the order of its worth; three layers are what costs most."""


def design(seeds: Sequence[int]) -> Iterator[Cell]:
    """The first blocks for all seeds, then the others for all seeds: parents come when they are needed."""
    for blocks in (BLOCKS[:3], BLOCKS[3:5], BLOCKS[5:]):
        for seed in seeds:
            for block in blocks:
                yield from (replace(cell, seed=seed) for cell in block)
