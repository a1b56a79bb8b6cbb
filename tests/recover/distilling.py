"""Small teachers, students and batches that the tests of distillation share."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import prunekit as pk
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.surgery import Removal
from prunekit.workload import Batch, Split

WORDS = ((7, 5), (3, 7), (9, 2))
"""Seed and length of each example of words."""


def bert(implementation: str = "eager") -> nn.Module:
    """An encoder of 3 layers of 24, 4 heads and 32 neurons each, for 3 classes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation=implementation,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def llama(implementation: str = "eager") -> nn.Module:
    """A decoder of 3 layers of 24, 4 heads in 2 groups and 32 neurons each, for 40 words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        attn_implementation=implementation,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def sentence(seed: int, length: int) -> torch.Tensor:
    """``[length]`` words."""
    return torch.randint(1, 40, (length,), generator=torch.Generator().manual_seed(seed))


def words(examples, *, width: int = 7, left: bool = False, **more) -> Batch:
    """Sentences padded to one width, by default at their ends."""
    ids, mask = torch.zeros(len(examples), width, dtype=torch.int64), torch.zeros(len(examples), width).long()
    for row, (seed, length) in enumerate(examples):
        place = slice(width - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = sentence(seed, length), 1
    names = tuple(f"{seed}/{length}" for seed, length in examples)
    return Batch(args=(), kwargs={"input_ids": ids, "attention_mask": mask, **more}, ids=names)


class Sentences(Dataset):
    """The examples of :func:`words`, with a label each."""

    def __init__(self, examples, width: int = 7) -> None:
        self.batch, self.count = words(examples, width=width), len(examples)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place):
        return {**{name: each[place] for name, each in self.batch.kwargs.items()}, "label": place % 2}


def sentences(examples, width: int = 7) -> Split:
    """A split of them, with the ids of :func:`words`."""
    ids = [f"{seed}/{length}" for seed, length in examples]
    return Split("train", Sentences(examples, width), ids=ids)


MAKE = {"bert": bert, "llama": llama}


@dataclass(frozen=True)
class Family:
    """A teacher, a plan, and the student that it makes, once it is asked for."""

    teacher: nn.Module
    plan: PruningPlan
    groups: Groups

    @cached_property
    def removal(self) -> Removal:
        return pk.remove(self.teacher, self.plan, self.groups)

    @property
    def student(self) -> nn.Module:
        """A copy of the student, in evaluation mode."""
        return copy.deepcopy(self.removal.model).eval()

    @property
    def lineage(self) -> pk.Lineage:
        return pk.Lineage.of(self.removal, self.plan, self.groups)


@cache
def _groups(kind: str, implementation: str) -> tuple[nn.Module, Groups]:
    teacher = MAKE[kind](implementation)
    return teacher, pk.find_groups(pk.trace(teacher, (), words(WORDS).kwargs))


@cache
def family(kind: str, granularity: str, implementation: str = "eager") -> Family:
    """A teacher without half of its units of a kind, by chance; or without its second layer."""
    teacher, found = _groups(kind, implementation)
    groups = found.select(granularity=granularity)
    draw = np.random.default_rng(1)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    share = 0.5
    if granularity == "layer":
        scores, share = {group.name: np.float32([3, 1, 2]) for group in groups}, 0.34
    plan = pk.allocate(groups, scores, pk.Goal("sparsity", remove=share), criterion="random")
    return Family(teacher, plan, groups)
