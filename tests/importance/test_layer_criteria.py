"""Criteria of layers and branches, against forward hooks on the user's own class and NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance import CRITERIA

LAYERS = 3
NAMES = ("block_influence", "layer_gate", "bypass_loss")
WITHOUT_GRADIENTS = ("block_influence", "bypass_loss")
"""Autograd refuses a net that writes into what a norm has read."""


class Block(nn.Module):
    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.writes = writes

    def forward(self, x):
        y = self.linear(self.norm(x)).tanh()
        if self.writes:
            x += y  # What the layer was given is gone once it has run.
            return x
        return x + y


class Net(nn.Module):
    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block(writes=writes) for _ in range(LAYERS))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(outputs, batch):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), batch.target.flatten())


@pytest.fixture(scope="module", params=[False, True], ids=["adds", "adds in place"])
def net(request) -> nn.Module:
    torch.manual_seed(0)
    return Net(writes=request.param).double().eval()


@pytest.fixture(scope="module")
def batches() -> list[pk.Batch]:
    draw = torch.Generator().manual_seed(1)

    def one(size: int) -> pk.Batch:
        x = torch.randn(size, 5, 4, generator=draw, dtype=torch.float64)
        target = torch.randint(0, 3, (size, 5), generator=draw)
        return pk.Batch(args=(x,), target=target, ids=tuple(map(str, range(size))))

    return [one(3), one(2)]


@pytest.fixture(scope="module")
def scores(net, batches):
    """By criterion ``[layers]``, without normalisation, gathered in one pass."""
    groups = pk.find_groups(pk.trace(net, batches[0].args)).select(granularity="layer")
    names = WITHOUT_GRADIENTS if net.blocks[0].writes else NAMES
    needs = set().union(*(CRITERIA[name].needs for name in names))
    stats = pk.collect(net, batches, groups=groups, needs=needs, loss=loss)
    return {
        name: pk.score(net, groups, name, stats=stats, normalization="none")["blocks:layer"] for name in names
    }


def passing(net: nn.Module, batch: pk.Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """What enters and what leaves each layer."""
    entered: list[np.ndarray] = []
    left: list[np.ndarray] = []
    hooks = [
        hook
        for block in net.blocks
        for hook in (
            block.register_forward_pre_hook(
                lambda m, given: entered.append(given[0].detach().numpy().copy())
            ),
            block.register_forward_hook(lambda m, given, out: left.append(out.detach().numpy().copy())),
        )
    ]
    net(*batch.args)
    for hook in hooks:
        hook.remove()
    return list(zip(entered, left, strict=True))


def test_block_influence_is_one_minus_the_mean_cosine(net, batches, scores):
    cosines: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    for batch in batches:
        for layer, (x, y) in enumerate(passing(net, batch)):
            norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
            cosines[layer].append(((x * y).sum(-1) / norms).ravel())
    expected = [1 - np.concatenate(values).mean() for values in cosines]
    np.testing.assert_allclose(scores["block_influence"], expected, rtol=1e-6)


def test_the_gate_is_the_derivative_by_a_factor_on_what_a_layer_adds(net, batches, scores):
    """Oracle: central differences of the loss by a real factor, put there with a hook."""
    if "layer_gate" not in scores:
        pytest.skip("autograd refuses this net")
    expected = np.zeros(LAYERS)
    for batch in batches:
        for layer in range(LAYERS):
            ends = [value_with(net, batch, layer, 1 + step) for step in (1e-5, -1e-5)]
            expected[layer] += abs(ends[0] - ends[1]) / 2e-5 / len(batches)
    np.testing.assert_allclose(scores["layer_gate"], expected, rtol=1e-5)


def test_the_loss_without_a_layer_is_measured(net, batches, scores):
    change = np.zeros(LAYERS)
    for batch in batches:
        whole = float(loss(net(*batch.args), batch).detach())
        for layer in range(LAYERS):
            change[layer] += (value_with(net, batch, layer, 0.0) - whole) / len(batches)
    np.testing.assert_allclose(scores["bypass_loss"], change - min(0, change.min()), rtol=1e-6, atol=1e-9)


def value_with(net: nn.Module, batch: pk.Batch, layer: int, gate: float) -> float:
    """The loss when what a layer adds is multiplied with ``gate``."""
    kept: list[torch.Tensor] = []
    block = net.blocks[layer]
    hooks = [
        block.register_forward_pre_hook(lambda m, given: kept.append(given[0].clone())),
        block.register_forward_hook(lambda m, given, out: kept[0] + gate * (out - kept[0])),
    ]
    with torch.no_grad():
        value = float(loss(net(*batch.args), batch))
    for hook in hooks:
        hook.remove()
    return value


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_pruned_by_it(net, batches, name, scores):
    if name not in scores:
        pytest.skip("autograd refuses this net")
    result = pk.prune(
        net,
        batches[0].args,
        granularity="layer",
        sparsity=0.67,
        criterion=name,
        calibration=batches,
        loss=loss,
    )
    assert result.plan.keep["blocks:layer"] == (int(np.argmax(scores[name])),)
    assert result.proof.passed


@pytest.mark.parametrize("name", NAMES)
def test_widths_are_refused_before_any_work(net, batches, name):
    with pytest.raises(SelectionError, match="no layer is left out with them"):
        pk.prune(net, batches[0].args, granularity="hidden", criterion=name, calibration=batches, loss=loss)


def test_the_loss_is_asked_for_before_any_work(net, batches):
    groups = pk.find_groups(pk.trace(net, batches[0].args)).select(granularity="layer")
    for name in ("layer_gate", "bypass_loss"):
        with pytest.raises(CalibrationError, match="need a loss and none was given"):
            pk.collect(net, batches, groups=groups, needs=CRITERIA[name].needs)


def test_a_layer_that_gives_nan_is_named(batches):
    torch.manual_seed(0)
    net = Net(writes=False).double().eval()
    groups = pk.find_groups(pk.trace(net, batches[0].args)).select(granularity="layer")
    with torch.no_grad():
        net.blocks[1].linear.bias[0] = float("nan")
    with pytest.raises(CalibrationError, match="unit 1 of group 'blocks:layer'"):
        pk.collect(net, batches, groups=groups, needs=CRITERIA["block_influence"].needs)
