"""One token with a cache of keys and values: the cache is as wide as the model that takes it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import prunekit as pk
from prunekit.deploy import OnnxExport, export_onnx, feed
from prunekit.errors import MeasurementError, ProofError
from prunekit.measure import Target, open_target
from prunekit.surgery import reduced_graph
from prunekit.surgery.carried import graph_at, narrowed_inputs
from prunekit.surgery.remove import masked
from prunekit.surgery.sharded import smaller_architecture
from prunekit.targeting.rig import rig_for

PAST, LAYERS, HEADS, KV, WIDTH = 6, 2, 4, 2, 8
SIZES = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": WIDTH, "intermediate_size": 24}
CONFIG = LlamaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=LAYERS, **SIZES)
HEAD_GROUP = "model.layers.{}.self_attn.q_proj:head_group"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def cache(examples: int = 2) -> DynamicCache:
    generator = torch.Generator().manual_seed(1)
    found = DynamicCache(config=CONFIG)
    for layer in range(LAYERS):
        keys, values = (torch.randn(examples, KV, PAST, WIDTH, generator=generator) for _ in range(2))
        found.update(keys, values, layer)
    return found


def step(examples: int = 2) -> dict:
    return {"input_ids": torch.arange(examples)[:, None], "past_key_values": cache(examples)}


class Flat(nn.Module):
    """A decode step in tensors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = llama()

    def forward(self, ids, past_key_values):
        given = DynamicCache()
        for layer, (keys, values) in enumerate(past_key_values):
            given.update(keys, values, layer)
        out = self.model(input_ids=ids, past_key_values=given)
        caches = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return {"logits": out.logits, "past_key_values": caches}


@pytest.fixture(scope="module")
def dense() -> LlamaForCausalLM:
    return llama()


@pytest.fixture(scope="module")
def groups(dense) -> pk.Groups:
    return pk.find_groups(pk.trace(dense, (), step()))


def shapes(inputs: object) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def some(groups: pk.Groups, *kinds: str) -> dict[str, np.ndarray]:
    """Every second unit goes, and of layers the last."""
    keep = {}
    for group in groups:
        if group.granularity.value in kinds:
            gone = [group.size - 1] if group.is_depth else range(0, group.size, 2)
            keep[group.name] = ~np.isin(np.arange(group.size), list(gone))
    return keep


def called(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """The logits and the caches that hold something; the inputs stay as they are."""
    args, kwargs = pytree.tree_map(lambda leaf: leaf, inputs)
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]


def same(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=0, atol=2e-6)


def test_a_given_cache_belongs_to_the_heads_that_computed_it(groups):
    """Oracle: the groups of the same model traced on whole sequences, where nothing is given."""
    tokens = {"input_ids": torch.arange(14).reshape(2, 7), "use_cache": False}
    prefill = pk.find_groups(pk.trace(llama(), (), tokens))
    assert groups.fingerprint == prefill.fingerprint
    assert {item.name for item in groups.frozen} == {item.name for item in prefill.frozen}
    assert groups.graph.batch_is_open
    assert list(groups.graph.carried.values()) == [1, 2, 3, 4]


def test_one_example_is_traced_with_an_open_batch_and_its_cache_is_left_alone(dense):
    given = step(1)
    graph = pk.trace(dense, (), given)
    assert graph.batch_is_open
    assert shapes(given["past_key_values"].layers[0].keys) == [(1, KV, PAST, WIDTH)]
    assert shapes(graph.kwargs["past_key_values"]) == [(2, KV, PAST, WIDTH)] * 4


@pytest.mark.parametrize("kinds", [("head_group",), ("head", "neuron"), ("head", "head_group", "neuron")])
def test_the_pruned_step_on_the_narrower_cache_is_the_masked_step_on_the_whole_one(dense, groups, kinds):
    """Oracle: the dense class with zeros in place of what goes, given the whole cache."""
    keep = some(groups, *kinds)
    whole = groups.graph.args, groups.graph.kwargs
    left = called(reduced_graph(dense, keep, groups), narrowed_inputs(groups, keep, whole))
    zeroed = called(masked(dense, keep, groups), whole)
    assert same(left[0], zeroed[0])
    heads = np.flatnonzero(keep.get(HEAD_GROUP.format(0), np.ones(KV)))
    assert same(left[1], zeroed[1][:, heads])
    assert not same(left[0], called(dense, whole)[0])


def test_what_is_left_of_a_cache_are_the_heads_that_stay(groups):
    """Oracle: NumPy's ``take`` along the second dimension."""
    keep = {HEAD_GROUP.format(0): np.array([False, True]), HEAD_GROUP.format(1): np.array([True, False])}
    args, kwargs = narrowed_inputs(groups, keep, ((), groups.graph.kwargs))
    for layer, head in ((0, 1), (1, 0)):
        before, after = (
            groups.graph.kwargs["past_key_values"].layers[layer],
            kwargs["past_key_values"].layers[layer],
        )
        np.testing.assert_array_equal(after.keys, before.keys.numpy().take([head], axis=1))
        np.testing.assert_array_equal(after.values, before.values.numpy().take([head], axis=1))
    assert args == ()


def test_the_cache_of_a_layer_that_goes_is_empty(dense, groups):
    """Oracle: the class with fewer layers, given a cache with fewer."""
    keep = some(groups, "layer")
    whole = groups.graph.args, groups.graph.kwargs
    args, kwargs = narrowed_inputs(groups, keep, whole)
    assert shapes(kwargs)[1:] == [(2, KV, PAST, WIDTH)] * 2 + [(2, 0, PAST, 0)] * 2
    shorter = copy.deepcopy(dense)
    del shorter.model.layers[LAYERS - 1 :]
    shorter.config.num_hidden_layers = LAYERS - 1
    fewer = step()
    del fewer["past_key_values"].layers[LAYERS - 1 :]
    left = called(reduced_graph(dense, keep, groups), (args, kwargs))
    for mine, theirs in zip(left, called(shorter, ((), fewer)), strict=True):
        assert same(mine, theirs)


def test_every_law_holds(dense, groups):
    kinds = ("layer", "head", "head_dim", "head_group", "neuron")
    chosen = groups.select(granularity=kinds)
    plan = pk.allocate(chosen, pk.score(dense, chosen, "random"), pk.Goal("sparsity", remove=0.5))
    assert {groups[name].granularity.value for name in plan.keep} == set(kinds)
    proof = pk.verify(dense, reduced_graph(dense, plan.keep_mask(), chosen), plan, chosen)
    assert proof.passed, proof


def test_a_plan_for_the_step_is_carried_out_where_whole_sequences_are_traced(dense, groups):
    """Oracle: the pruned class on the whole sequence at once; a cache of its own gives the same."""
    kinds = ("layer", "head_group", "neuron")
    chosen = groups.select(granularity=kinds)
    plan = pk.allocate(chosen, pk.score(dense, chosen, "random"), pk.Goal("sparsity", remove=0.4))
    ids = torch.randint(0, 61, (2, PAST + 1), generator=torch.Generator().manual_seed(2))
    prefill = pk.find_groups(pk.trace(dense, (), {"input_ids": ids, "use_cache": False}))
    removal = pk.remove(dense, plan, prefill.select(granularity=kinds))
    assert removal.form == "own class"
    with torch.no_grad():
        before = removal.model(ids[:, :PAST], use_cache=True).past_key_values
        after = removal.model(ids[:, PAST:], past_key_values=before).logits[:, -1]
        assert same(after, removal.model(ids, use_cache=False).logits[:, -1])
        assert len(before.layers) == LAYERS - 1


def test_flat_tensors_are_a_cache_where_they_are_called_one():
    """Oracle: the model with zeros in place of what goes, given the whole cache."""
    model = Flat().eval()
    past = [(layer.keys, layer.values) for layer in cache().layers]
    given = (torch.arange(2)[:, None], past)
    groups = pk.find_groups(pk.trace(model, given))
    keep = some(groups, "head_group")
    assert len(keep) == LAYERS
    smaller = narrowed_inputs(groups, keep, (given, {}))
    assert shapes(smaller)[1:] == [(2, 1, PAST, WIDTH)] * 4
    left = called(reduced_graph(model, keep, groups), smaller)
    assert same(left[0], called(masked(model, keep, groups), (given, {}))[0])


def test_a_cache_that_is_written_in_place_shrinks_too(dense):
    """Oracle: the dense class with zeros in place of what goes, given the whole cache."""
    given = StaticCache(config=CONFIG, max_cache_len=9)
    with torch.no_grad():
        dense(torch.arange(12).reshape(2, 6), past_key_values=given)
    groups = pk.find_groups(pk.trace(dense, (), {**step(), "past_key_values": given}))
    keep = some(groups, "head_group", "neuron")
    whole = pytree.tree_map(copy.deepcopy, (groups.graph.args, groups.graph.kwargs))
    smaller = narrowed_inputs(groups, keep, pytree.tree_map(copy.deepcopy, whole))
    left = called(reduced_graph(dense, keep, groups), smaller)
    assert same(left[0], called(masked(dense, keep, groups), whole)[0])


def test_a_cache_that_counts_its_calls_is_not_timed(dense, tmp_path):
    given = StaticCache(config=CONFIG, max_cache_len=9)
    with torch.no_grad():
        dense(torch.arange(12).reshape(2, 6), past_key_values=given)
    graph = pk.trace(dense, (), {**step(), "past_key_values": given})
    rig = rig_for(graph, Target("torch_eager", threads=1, batch=2), tmp_path)
    with pytest.raises(MeasurementError, match="DynamicCache"):
        rig.open_artifact(rig.artifact(dense, "dense"))


class Placed(nn.Module):
    """Adds a learned number to every place of the features that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.new, self.out = nn.Parameter(torch.randn(5)), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, past_key_values):
        renewed = past_key_values + self.new(x)[:, None]
        mixed = (renewed + self.bias[:, None]).softmax(1)
        return {"y": self.out(mixed.sum(1)), "past_key_values": renewed}


def test_places_of_a_cache_stay_where_weights_run_along_them():
    groups = pk.find_groups(pk.trace(Placed(), (torch.randn(2, 6), torch.randn(2, 5, 4))))
    assert [group.name for group in groups] == ["new:hidden"]
    (frozen,) = [item for item in groups.frozen if item.name == "bias:0"]
    assert "nothing in the model computes" in frozen.reason


class Crossing(nn.Module):
    """Reads keys that another call computed with weights that lie unused here."""

    def __init__(self, *, adds: bool) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)
        self.adds = adds

    def forward(self, x, past_key_values):
        query = self.query(x).unflatten(-1, (3, 4)).transpose(1, 2)
        if self.adds:
            new = self.key(x).unflatten(-1, (3, 4)).transpose(1, 2)
            past_key_values = torch.cat([past_key_values, new], dim=2)
        mixed = F.scaled_dot_product_attention(query, past_key_values, past_key_values)
        return {"y": self.out(mixed.transpose(1, 2).flatten(2)), "past_key_values": past_key_values}


@pytest.mark.parametrize("adds", [True, False])
def test_a_cache_that_a_step_only_reads_keeps_its_heads(adds):
    """Removing heads would leave ``key``, which is not in the graph, as wide as it was."""
    groups = pk.find_groups(pk.trace(Crossing(adds=adds), (torch.randn(2, 1, 6), torch.randn(2, 3, 5, 4))))
    assert ("head" in {group.granularity for group in groups}) is adds
    frozen = [item.reason for item in groups.frozen if item.name == "query.weight:0"]
    assert adds or "another call computes" in frozen[0]


@pytest.fixture(scope="module")
def exported(dense, groups, tmp_path_factory) -> tuple[nn.Module, dict, OnnxExport]:
    """The step without some heads, neurons and the last layer, what it keeps, and its file."""
    keep = some(groups, "layer", "head_group", "neuron")
    small, example = reduced_graph(dense, keep, groups), graph_at(groups, keep)
    path = tmp_path_factory.mktemp("exported") / "step.onnx"
    export = export_onnx(small, example.args, example.kwargs, path)
    assert shapes(example.kwargs)[1] == (2, 1, PAST, WIDTH)  # Not longer, though the model was called.
    return small, keep, export


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_give_what_the_pruned_step_gives(groups, exported, runtime):
    """Oracle: PyTorch, on the narrower cache, with three examples though it was exported with two."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    small, keep, export = exported
    inputs = narrowed_inputs(groups, keep, ((), {**groups.graph.kwargs, **step(3)}))
    runner = open_target(Target(runtime, threads=1, batch=3), Path(export.path), feed(export, *inputs))
    # OpenVINO gives a lone number for a tensor that holds nothing.
    found = [array for array in runner.outputs().values() if array.ndim and array.size]
    for mine, theirs in zip(found, called(small, inputs), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_a_rig_gives_every_model_the_cache_that_it_takes(dense, groups, tmp_path):
    rig = rig_for(groups.graph, Target("torch_eager", threads=1, batch=3), tmp_path)
    keep = some(groups, "head_group")
    fitted = rig.fitted(groups, keep)
    assert shapes(rig.inputs)[1:] == [(3, KV, PAST, WIDTH)] * 4
    assert shapes(fitted.inputs)[1:] == [(3, 1, PAST, WIDTH)] * 4
    runner = fitted.open_artifact(fitted.artifact(reduced_graph(dense, keep, groups), "small"))
    runner()
    grown = [array.shape for array in runner.outputs().values()]
    assert grown[1:] == [(3, 1, PAST + 1, WIDTH)] * 4  # Not longer with every call.


def test_nobody_can_say_how_to_shard_a_step(dense, groups):
    with pytest.raises(ProofError, match="use_cache=False"):
        smaller_architecture(dense, some(groups, "head_group"), groups)
