"""Pruned transformers: built again from their configuration, saved, loaded, generating with a cache."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.surgery import Pruned

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

WIDTHS = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(0, 37, (2, 7), generator=torch.Generator().manual_seed(0))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**WIDTHS, num_key_value_heads=2, head_dim=8, eos_token_id=None)
    return transformers.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    experts = {"num_local_experts": 5, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(**WIDTHS, **experts, num_key_value_heads=2, eos_token_id=None)
    return transformers.MixtralForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**WIDTHS))


@cache
def pruned(build, granularity: tuple[str, ...]) -> Pruned:
    torch.manual_seed(0)
    return pk.prune(build().eval(), kwargs={"input_ids": TOKENS}, granularity=granularity)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS)[0]


@pytest.mark.parametrize(
    ("build", "granularity", "changed"),
    [
        (
            llama,
            ("head", "hidden", "neuron"),
            {"num_attention_heads": 2, "hidden_size": 12, "intermediate_size": 20},
        ),
        (mixtral, ("expert", "neuron"), {"num_local_experts": 3, "intermediate_size": 20}),
        (llama, ("head_group",), {"num_attention_heads": 2, "num_key_value_heads": 1}),
        (mixtral, ("hidden",), {"hidden_size": 12, "head_dim": 6}),
        pytest.param(bert, ("neuron",), {"intermediate_size": 20}, marks=pytest.mark.slow),
    ],
    ids=["llama", "mixtral", "llama, head groups", "mixtral, derived head width", "bert"],
)
def test_the_configuration_builds_the_pruned_model_again(build, granularity, changed, tmp_path):
    """Halves by hand; of five experts, of which a router chooses two, three stay."""
    result = pruned(build, granularity)
    assert result.form == "own class"
    assert result.form_reason.endswith("its configuration builds it again")
    dense = build().config.to_dict()
    after = result.model.config.to_dict()
    assert {name: after[name] for name in dense if after[name] != dense[name]} == changed
    result.model.save_pretrained(tmp_path)
    loaded = type(result.model).from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded), outputs(result.model))


def test_a_configuration_that_cannot_describe_the_model_says_so_and_stays(tmp_path):
    """BERT's head width is its hidden size over its heads, so fewer heads of the same width have no words."""
    result = pruned(bert, ("head",))
    assert result.form == "own class"
    assert "its configuration does not build it again: no configuration gives" in result.form_reason
    assert result.model.config.to_dict() == bert().config.to_dict()
    assert outputs(result.model).shape == (2, 7, 24)


@pytest.mark.parametrize(
    ("build", "granularity"),
    [(llama, ("head", "hidden", "neuron")), (mixtral, ("expert", "neuron"))],
    ids=["llama", "mixtral"],
)
def test_generation_with_a_cache_is_generation_without(build, granularity):
    model = pruned(build, granularity).model
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(TOKENS, use_cache=True, **arguments)
    assert with_cache.shape == (2, 15)
    assert torch.equal(with_cache, model.generate(TOKENS, use_cache=False, **arguments))


@pytest.mark.parametrize("granularity", [("head",), ("head", "head_dim", "hidden", "neuron")])
def test_what_only_a_trace_reads_has_followed(granularity):
    """Keys are repeated in a trace, as often as the class says; elsewhere the operator shares them."""
    model = pruned(llama, granularity).model
    assert [layer.self_attn.num_key_value_groups for layer in model.model.layers] == [1, 1]
    mask = torch.ones_like(TOKENS)
    program = torch.export.export(model, (), {"input_ids": TOKENS, "attention_mask": mask}, strict=False)
    with torch.no_grad():
        found = program.module()(input_ids=TOKENS, attention_mask=mask).logits
        assert torch.allclose(found, model(input_ids=TOKENS, attention_mask=mask).logits, atol=1e-6)


def test_a_longer_sequence_gives_what_the_masked_model_gives():
    """Neurons are mask-equivalent: the oracle is the dense class with their slices zeroed by hand."""
    result = pruned(llama, ("neuron",))
    torch.manual_seed(0)
    dense = llama().eval()
    with torch.no_grad():
        for group in result.groups:
            gone = torch.from_numpy(~result.plan.keep_mask()[group.name])
            for part in group.slices:
                tensor = dense.get_parameter(part.tensor)
                tensor.index_fill_(part.dim, gone[part.units].nonzero().flatten(), 0.0)
        longer = torch.randint(0, 37, (3, 23), generator=torch.Generator().manual_seed(1))
        expected, found = dense(input_ids=longer).logits, result.model(input_ids=longer).logits
    assert torch.allclose(found, expected, atol=1e-6)
