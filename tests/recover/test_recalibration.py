"""Recalibrated statistics are those of the layers' inputs, in NumPy and float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import prunekit as pk
from prunekit.errors import CalibrationError
from prunekit.graph import find_groups, trace
from prunekit.recover import Recalibrated, recalibrate_norms
from prunekit.surgery.remove import reduced_graph
from prunekit.workload import Batch

SIZES = (5, 8, 2)
"""Batches of different sizes: averages over batches would be something else."""


class Functional(nn.Module):
    """Calls the norm itself, on buffers of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        return functional.batch_norm(x, self.running_mean, self.running_var, bias=torch.ones(4))


def _image(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 1))


NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4, momentum=0.3),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "without scale": lambda: nn.BatchNorm2d(4, affine=False),
    "synchronised": lambda: nn.SyncBatchNorm(4),
    "functional": Functional,
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


def batches(*shape: int, scale: float = 3.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [Batch(args=(torch.randn(size, *shape, generator=generator) * scale + 1,)) for size in SIZES]


def inputs_of(model: nn.Module, place: str, data: list[Batch]) -> list[np.ndarray]:
    """What a layer is given, batch by batch."""
    found = []
    layer = model.get_submodule(place)
    hook = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach().double().numpy()))
    with torch.no_grad():
        for batch in data:
            model(*batch.args)
    hook.remove()
    return found


def over_all_values(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in found])
    return values.mean(axis=0), values.var(axis=0, ddof=1)


def over_examples(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    each = np.concatenate([one.reshape(*one.shape[:2], -1) for one in found])
    return each.mean(axis=2).mean(axis=0), each.var(axis=2, ddof=1).mean(axis=0)


@pytest.mark.parametrize("form", ["own class", "graph module"])
@pytest.mark.parametrize("kind", NORMS)
def test_statistics_are_those_of_the_inputs_over_all_the_data(kind, form):
    torch.manual_seed(0)
    model = _image(NORMS[kind]()).eval()
    data = batches(3, 8, 8)
    oracle = over_examples if kind == "instance norm" else over_all_values
    mean, variance = oracle(inputs_of(model, "1", data))
    if form == "graph module":
        model = reduced_graph(model, {}, find_groups(trace(model, data[0].args)))

    report = recalibrate_norms(model, data)

    assert report == Recalibrated(("1",), (), 3)
    np.testing.assert_allclose(model.get_buffer("1.running_mean").numpy(), mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.get_buffer("1.running_var").numpy(), variance, rtol=1e-6)


def stacked() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
    )


def test_a_later_norm_sees_what_an_earlier_one_gives_by_its_batch():
    # Oracle: the inputs of the second norm with the first in training mode, where it uses its batch.
    model, data = stacked().eval(), batches(3, 8, 8)
    twin = copy.deepcopy(model)
    twin[1].train()
    mean, variance = over_all_values(inputs_of(twin, "4", data))
    recalibrate_norms(model, data)
    np.testing.assert_allclose(model[4].running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model[4].running_var.numpy(), variance, rtol=1e-5)


def test_one_norm_at_several_places_pools_them():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(norm, nn.Linear(4, 4), norm).eval()
    data = batches(4)
    twin = copy.deepcopy(model)
    twin[0].train()
    found = inputs_of(twin, "0", data)
    assert len(found) == 6
    recalibrate_norms(model, data)
    mean, variance = over_all_values(found)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-5)


def test_small_differences_of_large_values_are_kept():
    # Oracle: NumPy in float64 on values around 1e4 with a deviation of 1e-1.
    model = nn.Sequential(nn.BatchNorm1d(3)).double().eval()
    data = [Batch(args=(b.args[0].double() * 0.1 + 1e4,)) for b in batches(3, scale=1.0)]
    _, variance = over_all_values([b.args[0].numpy() for b in data])
    recalibrate_norms(model, data)
    np.testing.assert_allclose(model[0].running_var.numpy(), variance, rtol=1e-6)


def test_everything_else_is_left_as_found():
    model = stacked()
    model[1].eval()
    model[4].momentum = 0.25
    model.register_buffer("other", torch.zeros(1))
    parameters = {name: each.detach().clone() for name, each in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    buffers = {name: id(each) for name, each in model.named_buffers()}
    random_state = torch.get_rng_state()
    report = recalibrate_norms(model, iter(batches(3, 8, 8)))
    assert report.norms == ("1", "4")
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.1, 0.25)
    assert all(torch.equal(each, parameters[name]) for name, each in model.named_parameters())
    assert all(each.grad is None for each in model.parameters())
    assert {name: id(each) for name, each in model.named_buffers()} == buffers
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [int(model[place].num_batches_tracked) for place in (1, 4)] == [3, 3]


def test_recalibrating_twice_changes_nothing_more():
    model = stacked()
    recalibrate_norms(model, batches(3, 8, 8))
    before = copy.deepcopy(model.state_dict())
    recalibrate_norms(model, batches(3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_statistics_is_left_alone_and_a_norm_not_reached_is_named():
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    before = copy.deepcopy(plain.state_dict())
    assert recalibrate_norms(plain, batches(4)) == Recalibrated((), (), 3)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.used(x)

    model = Partly()
    assert recalibrate_norms(model, batches(4)) == Recalibrated(("used",), ("spare",), 3)
    assert int(model.spare.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no calibration batches"),
        (torch.ones(2, 4), "an iterable of batches"),
        ([torch.ones(2, 4)], r"calibration batch 0.*Wrap the inputs"),
        ([*batches(4), Batch(args=(torch.ones(1, 4),))], "batch 3.*a single value.*two examples or more"),
        ([*batches(4), Batch(args=(torch.full((2, 4), torch.nan),))], "Norm '0' was given NaN"),
    ],
    ids=["none", "a tensor", "no batch", "one value", "NaN"],
)
def test_data_that_cannot_be_used_is_refused_and_the_model_left_alone(data, message):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match=message):
        recalibrate_norms(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_compiled_norms_are_seen_and_scripted_ones_refused():
    data = batches(4)
    model = nn.Sequential(torch.compile(nn.BatchNorm1d(4), backend="eager"))
    recalibrate_norms(model, data)
    mean, _ = over_all_values([batch.args[0].double().numpy() for batch in data])
    np.testing.assert_allclose(model[0].running_mean.numpy(), mean, rtol=1e-6, atol=1e-7)
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)))
    with pytest.raises(CalibrationError, match=r"module '0': torch\.jit compiled it"):
        recalibrate_norms(scripted, data)


def test_a_pruned_network_gets_the_statistics_of_its_own_inputs():
    model = stacked().eval()
    data = batches(3, 8, 8)
    small = pk.prune(model, data[0].args, sparsity=0.5, only="0.*").model
    mean, variance = over_all_values(inputs_of(small, "1", data))
    pk.recalibrate_norms(small, data)
    np.testing.assert_allclose(small[1].running_mean.numpy(), mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(small[1].running_var.numpy(), variance, rtol=1e-6)
