"""Router-weighted expert importance against loops over tokens and experts in NumPy float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.zoo.experts import Mixture, gathered, marked, scattered, weighted
from torch import nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.graph import find_groups, trace
from prunekit.importance import collect, score


def numpy(tensor):
    return tensor.detach().double().numpy()


def softmax(x):
    exponent = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def best(logits, count):
    """``[tokens, experts]`` which experts have the largest logits."""
    order = np.argsort(-logits, axis=-1)[:, :count]
    return np.any(order[..., None] == np.arange(logits.shape[-1]), axis=1)


def reap(weight, outputs):
    """The mean over the tokens of each expert, by loops: ``[tokens, experts]``, ``[tokens, experts, d]``."""
    scores = []
    for expert in range(weight.shape[1]):
        tokens = [n for n in range(len(weight)) if weight[n, expert] != 0]
        norms = [abs(weight[n, expert]) * np.linalg.norm(outputs[n, expert]) for n in tokens]
        scores.append(np.mean(norms) if norms else 0.0)
    return scores


ROUTERS = {
    gathered: lambda logits: softmax(logits) * best(logits, 2),
    marked: lambda logits: softmax(logits) * best(logits, 1),
    scattered: lambda logits: softmax(np.where(best(logits, 3), logits, -np.inf)),
}


@pytest.mark.parametrize("choose", ROUTERS, ids=lambda choose: choose.__name__)
def test_reap_of_three_ways_to_put_experts_together(choose):
    torch.manual_seed(0)
    model = Mixture(choose).double().eval()
    batches = [SimpleNamespace(args=(torch.randn(n, 6, dtype=torch.float64),), kwargs={}) for n in (9, 4)]
    groups = find_groups(trace(model, batches[0].args))
    x = numpy(model.embed(torch.cat([batch.args[0] for batch in batches])))
    inner = np.maximum(np.einsum("nd,edf->nef", x, numpy(model.up)), 0)
    weight = ROUTERS[choose](x @ numpy(model.router.weight).T)
    expected = reap(weight, np.einsum("nef,efd->ned", inner, numpy(model.down)))
    stats = collect(model, batches, groups=groups, needs={"expert_output"})
    found = score(model, groups, "reap", stats=stats, normalization="none", fallback="l2")
    (group,) = (group for group in groups if group.granularity == "expert")
    np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_an_expert_without_tokens_scores_zero():
    torch.manual_seed(0)
    model = Mixture(gathered).double().eval()
    with torch.no_grad():
        model.router.weight[3] = 0
        model.embed.weight.abs_()
        model.embed.bias.abs_()
        model.router.weight[[0, 1, 2, 4]] = model.router.weight[[0, 1, 2, 4]].abs()
    batch = SimpleNamespace(args=(torch.rand(8, 6, dtype=torch.float64),), kwargs={})
    groups = find_groups(trace(model, batch.args))
    stats = collect(model, [batch], groups=groups, needs={"expert_output"})
    (values,) = stats.values["expert_output"].values()
    chosen = best(numpy(model.router(model.embed(batch.args[0]))), 2).any(axis=0)
    assert not chosen[3]
    assert chosen.any()
    assert ((values > 0) == chosen).all()


def test_reap_of_tokens_sorted_by_expert():
    """A released decoder's mixture, which sorts tokens by expert for one grouped product."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=32,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    mixture = model.model.layers[0].mlp
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_()
    batches = [SimpleNamespace(args=(torch.randint(0, 32, (n, 5)),), kwargs={}) for n in (3, 2)]
    groups = find_groups(trace(model, batches[0].args))
    entering = []
    hook = mixture.register_forward_pre_hook(
        lambda module, args: entering.append(numpy(args[0]).reshape(-1, 16))
    )
    with torch.no_grad():
        for batch in batches:
            model(*batch.args)
    hook.remove()
    x = np.concatenate(entering)
    logits = x @ numpy(mixture.gate.weight).T
    weight = softmax(logits) * best(logits, 2)
    weight /= weight.sum(axis=1, keepdims=True)
    gate, up = np.split(np.einsum("nd,efd->nef", x, numpy(mixture.experts.gate_up_proj)), 2, axis=-1)
    inner = gate / (1 + np.exp(-gate)) * up
    expected = reap(weight, np.einsum("nef,edf->ned", inner, numpy(mixture.experts.down_proj)))
    stats = collect(model, batches, groups=groups, needs={"expert_output", "readings"})
    (group,) = (group for group in groups if group.granularity == "expert")
    np.testing.assert_allclose(stats.values["expert_output"][group.name], expected, rtol=1e-4)

    (neurons,) = (group for group in groups if "experts:neuron" in group.name)
    chosen = best(logits, 2)
    norms = np.sqrt(((inner * chosen[..., None]) ** 2).sum(axis=0))  # [experts, neurons]
    wanda = (np.abs(numpy(mixture.experts.down_proj)).sum(axis=1) * norms).sum(axis=0)
    found = score(model, groups, "wanda", stats=stats, normalization="none", fallback="l2")
    np.testing.assert_allclose(found[neurons.name], wanda, rtol=1e-4)


class Offset(nn.Module):
    """Experts whose sum is moved afterwards inside the same operator chain."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = Mixture(self.choose)

    @staticmethod
    def choose(model, logits, given):
        weight, chosen = logits.softmax(-1).topk(2, -1)
        picked = given.gather(1, chosen[..., None].expand(-1, -1, given.shape[-1])) + 1.0
        return (picked * weight[..., None]).sum(1)

    def forward(self, x):
        return self.mixture(x)


def test_experts_that_cannot_be_silenced_are_refused():
    torch.manual_seed(0)
    model = Offset().eval()
    batch = SimpleNamespace(args=(torch.randn(4, 6),), kwargs={})
    groups = find_groups(trace(model, batch.args))
    with pytest.raises(CalibrationError, match=r"mixture:expert.*not zero where all of them are"):
        collect(model, [batch], groups=groups, needs={"expert_output"})


def test_groups_that_are_no_routed_experts_are_named():
    torch.manual_seed(0)
    model = Mixture(weighted).eval()
    batch = SimpleNamespace(args=(torch.randn(4, 6),), kwargs={})
    groups = find_groups(trace(model, batch.args))
    with pytest.raises(
        SelectionError, match=r"'reap' says nothing about the groups.*not experts that a router"
    ):
        score(model, groups, "reap")
