"""The encoder: all-MiniLM-L6-v2 on snippets of film reviews."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from benchmarks.assets.minilm import MiniLM
from benchmarks.criteria.study import Contest, Study, Subject, of_widths
from torch import Tensor, nn

import prunekit as pk
from benchmarks import assets
from prunekit.surgery.remove import reduced_graph

TOKENS = 48
CALIBRATION_TEXTS, TEST_TEXTS = 64, 128
PAIRS_AT_ONCE = 16
LEFT_OUT = 0.5
SCALE = 20.0


@functools.cache
def loaded() -> tuple[MiniLM, pk.Groups]:
    """The checkpoint and its groups."""
    sentences = assets.load("minilm")
    groups = pk.find_groups(pk.trace(sentences.model, kwargs=tokens(sentences, ["one text", "another"])))
    return sentences, groups.select(granularity=["head", "neuron"], ignore="encoder.pooler.*")


def tokens(sentences: MiniLM, texts: list[str]) -> dict[str, Tensor]:
    """Texts as the model takes them, cut or padded to ``TOKENS``."""
    given = sentences.tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    return {name: given[name] for name in ("input_ids", "attention_mask")}


@functools.cache
def texts_of(split: str) -> tuple[str, ...]:
    return tuple(row.text for row in assets.load("movie-reviews")[split])


def thinned(text: str, generator: np.random.Generator) -> str:
    """A text without half of its words, at random."""
    words = text.split()
    kept = [word for word in words if generator.random() >= LEFT_OUT]
    return " ".join(kept or words)


def loss(embedded: Tensor, batch: Any) -> Tensor:
    """How badly each text finds its own thinned copy among those of the batch.

    The first half of the batch are texts, the second their copies, in the same order; cross-entropy over
    ``SCALE`` times the cosines. Source: Henderson et al. (2017), Efficient Natural Language Response
    Suggestion for Smart Reply, section 4.4, arXiv:1705.00652, the loss that this encoder was trained with.
    Deviation: copies with words left out stand for labelled pairs.
    """
    texts, copies = embedded.chunk(2)
    return nn.functional.cross_entropy(SCALE * texts @ copies.T, torch.arange(len(texts)))


def calibration(seed: int) -> list[pk.Batch]:
    sentences, _ = loaded()
    generator = np.random.default_rng(seed)
    drawn = generator.choice(
        np.array(texts_of("calibration"), dtype=object), CALIBRATION_TEXTS, replace=False
    )
    batches = []
    for start in range(0, CALIBRATION_TEXTS, PAIRS_AT_ONCE):
        texts = drawn[start : start + PAIRS_AT_ONCE].tolist()
        given = tokens(sentences, texts + [thinned(text, generator) for text in texts])
        batches.append(pk.Batch(args=(), kwargs=given))
    return batches


@torch.no_grad()
def embed(model: nn.Module) -> Tensor:
    """``[TEST_TEXTS, 384]``: the first texts of the test split."""
    given = tokens(loaded()[0], list(texts_of("test")[:TEST_TEXTS]))
    parts = zip(*(given[name].split(32) for name in ("input_ids", "attention_mask")), strict=True)
    return torch.cat([model(input_ids=ids, attention_mask=mask) for ids, mask in parts])


@functools.cache
def dense() -> Tensor:
    return embed(loaded()[0].model)


def judge(model: nn.Module) -> dict[str, float]:
    """Mean cosine to the dense embeddings, and how many texts keep their nearest other text."""
    found = embed(model)
    return {
        "cosine": float((found * dense()).sum(1).mean()),
        "neighbour": float((nearest(found) == nearest(dense())).double().mean()),
    }


def nearest(embedded: Tensor) -> Tensor:
    return (embedded @ embedded.T).fill_diagonal_(-2).argmax(1)


def prepare(seed: int) -> Subject:
    sentences, groups = loaded()
    return Subject(
        model=sentences.model,
        groups=groups,
        calibration=calibration(seed),
        loss=loss,
        judge=judge,
        carry_out=lambda plan, chosen: reduced_graph(sentences.model, plan.keep_mask(), chosen),
    )


STUDY = Study(
    name="all-MiniLM-L6-v2",
    about="Encoder, 6 layers of 12 heads. Mean cosine between the pruned and the dense embedding of "
    f"{TEST_TEXTS} snippets of the reviews' test split, and the share of them whose nearest other snippet is "
    f"still the dense model's. Calibrated on {CALIBRATION_TEXTS} snippets of the calibration split and as "
    "many copies with half of the words left out; the loss is that each text finds its copy, so no "
    "label is used. A seed draws the snippets and the words; criteria without data are the same for every "
    "seed and stand without a range.",
    prepare=prepare,
    contests=(Contest("heads and neurons", ("head", "neuron"), of_widths()),),
    sparsities=(0.1, 0.2, 0.3),
    figures={"cosine": "{:.3f}", "neighbour": "{:.0%}"},
)
