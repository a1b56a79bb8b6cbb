"""Criteria of activations against forward passes written out in NumPy float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.importance import collect, score
from prunekit.types import Granularity

SIZES = (6, 3)
"""Examples in each calibration batch."""


class Convolutions(nn.Module):
    """A convolution read by two others, one of them in groups, behind a norm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.wide, self.grouped = nn.Conv2d(6, 3, 2), nn.Conv2d(6, 6, 2, groups=3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.wide(x).sum((2, 3)), self.grouped(x).sum((2, 3))


class Fused(nn.Module):
    """Attention of three heads from one bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(36, 12) / 3)
        self.out = nn.Parameter(torch.randn(12, 5) / 3)

    def heads(self, x):
        q, k, v = (
            part.view(*x.shape[:2], 3, 4).transpose(1, 2) for part in F.linear(x, self.qkv).chunk(3, dim=-1)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x):
        return self.heads(x) @ self.out


class Experts(nn.Module):
    """All experts for every token: the neurons of an expert are those of all."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 7)), nn.Parameter(torch.randn(4, 7, 3))

    def inner(self, x):
        return torch.relu(torch.einsum("bd,edf->bef", x, self.up))

    def forward(self, x):
        given = torch.einsum("bef,efd->bed", self.inner(x), self.down)
        return torch.einsum("be,bed->bd", self.router(x).softmax(-1), given)


class Batched(Experts):
    """The same with a batched product, experts in front."""

    def inner(self, x):
        return torch.relu(x.expand(4, -1, -1) @ self.up)

    def forward(self, x):
        given = self.inner(x) @ self.down
        return (self.router(x).softmax(-1).T[..., None] * given).sum(0)


def numpy(tensor):
    return tensor.detach().double().numpy()


def of_convolutions(model, x):
    """``[positions, units, blocks]`` and ``[units, blocks, weights]``: channel 2 b + u is unit u."""
    seen = torch.relu(model.norm(model.first(x))).movedim(1, -1).reshape(-1, 3, 2)
    wide = numpy(model.wide.weight).transpose(1, 0, 2, 3).reshape(3, 2, -1)
    grouped = numpy(model.grouped.weight).reshape(3, 2, 2, 4).transpose(0, 2, 1, 3).reshape(3, 2, -1)
    return numpy(seen).transpose(0, 2, 1), [wide.transpose(1, 0, 2), grouped.transpose(1, 0, 2)]


def of_heads(model, x):
    """``[tokens, heads, indices]`` and ``[heads, indices, outputs]``."""
    return numpy(model.heads(x)).reshape(-1, 3, 4), [numpy(model.out).reshape(3, 4, 5)]


def of_neurons(model, x):
    """``[tokens, neurons, experts]`` and ``[neurons, experts, outputs]``."""
    inner = numpy(model.inner(x))
    inner = inner.transpose(0, 2, 1) if type(model) is Experts else inner.transpose(1, 2, 0)
    return inner, [numpy(model.down).transpose(1, 0, 2)]


PLACES = {
    "convolutions": (Convolutions, (2, 6, 6), Granularity.CHANNEL, of_convolutions),
    "fused attention": (Fused, (5, 12), Granularity.HEAD, of_heads),
    "experts": (Experts, (6,), Granularity.NEURON, of_neurons),
    "batched experts": (Batched, (6,), Granularity.NEURON, of_neurons),
}
"""Model, shape of an example, units, and what reads them: activations by unit and index, weights likewise."""


def formulas(x, weight):
    """Every criterion from all values ``[n, units, indices]`` and weights ``[units, indices, outputs]``."""
    variance = x.var(axis=0)
    return {
        "activation_mean": np.abs(x).mean(axis=(0, 2)),
        "activation_l2": np.sqrt((x**2).sum(axis=2).mean(axis=0)),
        "activation_variance": variance.sum(axis=1),
        "apoz": 1 - (x == 0).mean(axis=(0, 2)),
        "wanda": (np.abs(weight) * np.linalg.norm(x, axis=0)[..., None]).sum(axis=(1, 2)),
        "flap": (x.var(axis=0, ddof=1) * (weight**2).sum(axis=2)).sum(axis=1),
    }


def case(name, dtype=torch.float64):
    build, shape, kind, oracle = PLACES[name]
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
    batches = [SimpleNamespace(args=(torch.randn(n, *shape, dtype=dtype),), kwargs={}) for n in SIZES]
    groups = find_groups(trace(model, batches[0].args))
    chosen = [group for group in groups if group.granularity is kind and "router.weight" not in group.tensors]
    return model, batches, groups, chosen[0], oracle


@pytest.mark.parametrize("criterion", list(formulas(np.zeros((2, 1, 1)), np.zeros((1, 1, 1)))))
@pytest.mark.parametrize("name", PLACES)
def test_formulas(name, criterion):
    model, batches, groups, group, oracle = case(name)
    seen = [oracle(model, *batch.args) for batch in batches]
    values, weights = np.concatenate([x for x, _ in seen]), seen[0][1]
    stats = collect(model, batches, groups=groups, needs={"readings"})
    assert [reading.where for reading in stats.readings[group.name]]
    for reduction in ("sum", "mean", "max"):
        found = score(
            model,
            groups,
            criterion,
            stats=stats,
            reduction=reduction,
            normalization="none",
            fallback="random",
        )
        per_reader = np.stack([formulas(values, weight)[criterion] for weight in weights])
        expected = getattr(per_reader, reduction)(axis=0)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_readings_add_up_the_same_on_any_cut_of_the_data():
    """Float32 activations, summed in float64: one batch or nine."""
    model, batches, groups, group, _ = case("convolutions", torch.float32)
    whole = torch.cat([batch.args[0] for batch in batches])
    singles = [SimpleNamespace(args=(x[None],), kwargs={}) for x in whole]
    (one, *_), (many, *_) = (
        collect(model, cut, groups=groups, needs={"readings"}).readings[group.name]
        for cut in ([SimpleNamespace(args=(whole,), kwargs={})], singles)
    )
    assert (one.count == many.count).all()
    for sums in ("total", "magnitude", "squares", "zeros"):
        np.testing.assert_allclose(getattr(one, sums), getattr(many, sums), rtol=1e-5, atol=1e-5)


def test_units_that_only_meet_activations_are_observed_where_they_are_produced():
    model, batches, groups, _, _ = case("fused attention")
    group = next(g for g in groups if g.granularity is Granularity.HEAD_DIM and not g.mask_equivalent)
    readings = collect(model, batches, groups=groups, needs={"readings"}).readings[group.name]
    assert [reading.weight_magnitude for reading in readings] == [None]
    produced = np.concatenate([numpy(F.linear(b.args[0], model.qkv)).reshape(-1, 36) for b in batches])
    expected = np.abs(produced[:, :24]).mean(axis=0).reshape(2, 12).mean(axis=0)
    stats = collect(model, batches, groups=groups, needs={"readings"})
    found = score(model, groups, "activation_mean", stats=stats, normalization="none")[group.name]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_weights_are_those_of_now_and_the_mode_is_evaluation():
    """The graph was traced before the weights changed; dropout is off and batch norm uses its statistics."""
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)).double()
    batch = SimpleNamespace(args=(torch.randn(7, 4, dtype=torch.float64),), kwargs={})
    groups = find_groups(trace(model, batch.args))
    (group,) = groups
    with torch.no_grad():
        model[0].weight.normal_()
        model[1].running_mean.uniform_()
    model.train()
    (reading,) = collect(model, [batch], groups=groups, needs={"readings"}).readings[group.name]
    weight, bias = numpy(model[0].weight), numpy(model[0].bias)
    x = batch.args[0].numpy() @ weight.T + bias - numpy(model[1].running_mean)
    x /= np.sqrt(numpy(model[1].running_var) + model[1].eps)
    np.testing.assert_allclose(reading.total, x.sum(axis=0), rtol=1e-9)
    assert reading.where == "3.weight"


def test_one_pass_gathers_what_several_criteria_need():
    """Oracle: each statistic gathered by itself; the data can be read once."""
    model, batches, groups, group, _ = case("fused attention")

    def loss(outputs, batch):
        return outputs.square().mean()

    needs = {"readings", "first_order", "gate", "fisher", "output_variance"}
    together = collect(model, iter(batches), groups=groups, needs=needs, loss=loss)
    for need in needs - {"readings"}:
        single = collect(model, batches, groups=groups, needs={need}, loss=loss).values[need]
        np.testing.assert_allclose(together.values[need][group.name], single[group.name], rtol=1e-9)
    single = collect(model, batches, groups=groups, needs={"readings"}).readings[group.name]
    for mine, theirs in zip(together.readings[group.name], single, strict=True):
        np.testing.assert_allclose(mine.squares, theirs.squares, rtol=1e-12)
