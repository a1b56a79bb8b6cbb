"""A decode step as what is measured: every model is timed with the cache that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.targeting.conftest import PlantedRig, Runner
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import prunekit as pk
from prunekit.surgery.carried import Inputs, narrowed_inputs
from prunekit.targeting import planner

PAST, LAYERS, KV, WIDTH = 5, 2, 4, 4
SIZES = {"num_attention_heads": 4, "num_key_value_heads": KV, "head_dim": WIDTH, "intermediate_size": 16}
CONFIG = LlamaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=LAYERS, **SIZES)


class DecodeRig(PlantedRig):
    """Runs what it opens, as long as the numbers that a call reads and writes."""

    def __init__(self, given: Inputs, seen: list[list[int]]) -> None:
        super().__init__((given[1]["input_ids"],))
        self.given, self.seen = given, seen

    def fitted(self, groups: pk.Groups, keep: Any) -> DecodeRig:
        return DecodeRig(narrowed_inputs(groups, keep, self.given), self.seen)

    def open_artifact(self, artifact: nn.Module) -> Runner:
        args, kwargs = pytree.tree_map(lambda leaf: leaf, self.given)
        self.seen.append([leaf.shape[1] for leaf in _tensors(kwargs)[1:]])
        with torch.no_grad():
            outputs = artifact(*args, **kwargs)
        numbers = [*artifact.parameters(), *_tensors(outputs), *_tensors(self.given)]
        return Runner(1e-4 * sum(each.numel() for each in numbers))


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def step(examples: int) -> dict[str, Any]:
    cache = DynamicCache(config=CONFIG)
    for layer in range(LAYERS):
        cache.update(*torch.randn(2, examples, KV, PAST, WIDTH), layer)
    return {"input_ids": torch.zeros(examples, 1, dtype=torch.int64), "past_key_values": cache}


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("batch", [1, 8])
def test_half_the_cache_is_reached(batch, tmp_path: Path, monkeypatch):
    """Oracle: the bytes of keys and values by hand, and the shapes that the models were given."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    seen: list[list[int]] = []
    monkeypatch.setattr(planner, "rig_for", lambda *_, **__: DecodeRig(((), step(batch)), seen))
    found = pk.measure_target(
        model,
        (),
        step(1),
        target=pk.Target("torch_eager", threads=1, batch=batch),
        space=pk.Space("head"),
        timing=pk.Timing(variants=2, seconds=0.05, folder=tmp_path, tables=tmp_path),
    )
    whole = LAYERS * 2 * batch * KV * (PAST + 1) * WIDTH * 4
    assert found.costs.cache_bytes.at([0] * len(found.costs.levers)) == whole
    reached = found.reach(pk.Goal("kv_cache_bytes", reach=whole / 2))
    heads = [len(units) for units in reached.plan.keep.values()]
    assert sum(heads) == LAYERS * KV // 2
    assert seen[0] == [KV] * 2 * LAYERS
    assert sum(seen[-1]) == 2 * sum(heads)
    removal, proof = found.remove(reached)
    assert proof.passed
    assert removal.form == "own class"
