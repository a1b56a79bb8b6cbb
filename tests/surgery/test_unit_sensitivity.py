"""What losing units costs, one lever at a time: against the pruned graph; the model stays as it was."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from tests.zoo.toys import BY_NAME, CASES, everything_in
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.graph import find_groups, trace
from prunekit.plan.levers import find_levers
from prunekit.plan.losses import removed_shares
from prunekit.surgery import measure_unit_sensitivity, unit_sensitivity
from prunekit.surgery.compare import outputs
from prunekit.surgery.remove import reduced_graph
from prunekit.surgery.unit_sensitivity import middle_and_last

NAMES = [case.name for case in CASES if case.groups]
MIXED = "basic blocks"
"""A toy with widths and with a layer."""
NOT_IN_THE_MODEL = {"order written out"}
"""Toys with a constant along a group that no attribute of theirs holds."""


def levers_of(name: str, **limits):
    groups = everything_in(name)
    draw = np.random.default_rng(3)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    return find_levers(groups, scores, **limits), groups


def loss_of(name: str):
    """Mean square of all outputs plus a random part of each, so that every change of them shows."""
    args, kwargs = BY_NAME[name].inputs()
    released = everything_in(name).graph.released_paths

    def loss(model: nn.Module) -> float:
        total = 0.0
        for place, found in enumerate(outputs(model, *copy.deepcopy((args, kwargs)), released=released)):
            if found.is_floating_point() or found.is_complex():
                value = torch.view_as_real(found).double() if found.is_complex() else found.double()
                draw = torch.randn(value.shape, generator=torch.Generator().manual_seed(place))
                total += float((value.square() + draw * value).mean())
        return total

    return loss


def state_of(model: nn.Module) -> dict[str, object]:
    """Every tensor's identity, bits, dtype, gradient and mode."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    found: dict[str, object] = {
        name: (id(value), value.data_ptr(), value.dtype, bits(value), value.requires_grad, bits(value.grad))
        for name, value in named
    }
    return found | {f"{name} trains": module.training for name, module in model.named_modules()}


def bits(value: Tensor | None) -> bytes:
    return (
        b"" if value is None else value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_curve_is_what_removal_costs_and_the_model_stays_as_found(name, monkeypatch):
    """Oracle: the loss of the pruned graph without the same units."""
    model, loss = BY_NAME[name].model().eval(), loss_of(name)
    levers, groups = levers_of(name)
    for place, parameter in enumerate(model.parameters()):
        if place % 2 and parameter.is_leaf and parameter.is_floating_point():
            parameter.grad = torch.ones_like(parameter)
    before, graphs = state_of(model), []

    def recorded(model, keep, groups):
        graphs.append(tuple(keep))
        return reduced_graph(model, keep, groups)

    monkeypatch.setattr(unit_sensitivity, "reduced_graph", recorded)
    curves = measure_unit_sensitivity(model, levers, groups, loss)
    assert state_of(model) == before
    dense = loss(reduced_graph(model, {}, groups).eval())
    by_graph = 0
    for place, lever in enumerate(levers):
        shares = removed_shares(lever)
        assert list(curves[lever.name]) == [shares[level] for level in middle_and_last(lever)]
        for level in middle_and_last(lever):
            keep = levers.masks([level * (other == place) for other in range(len(levers))])
            expected = loss(reduced_graph(model, keep, groups).eval()) - dense
            assert curves[lever.name][shares[level]] == pytest.approx(
                expected, rel=1e-4, abs=1e-4 * (1 + abs(dense))
            )
            by_graph += lever.group.is_depth or not lever.group.mask_equivalent
    assert len(graphs) == by_graph or name in NOT_IN_THE_MODEL


def test_what_is_known_is_not_measured_again_and_a_killed_run_goes_on_to_the_same_bits():
    """Oracle: the run that was not interrupted."""
    name = MIXED
    model, loss = BY_NAME[name].model().eval(), loss_of(name)
    levers, groups = levers_of(name)
    calls: list[nn.Module] = []

    def counted(net: nn.Module) -> float:
        calls.append(net)
        return loss(net)

    steps: list[tuple[int, int]] = []
    whole = measure_unit_sensitivity(model, levers, groups, counted, progress=lambda *at: steps.append(at))
    assert steps == [(place + 1, len(levers)) for place in range(len(levers))]
    assert len(calls) == 1 + sum(map(len, whole.values()))
    written: dict[str, dict[float, float]] = {}

    def stop(lever, curve):
        written[lever] = dict(curve)
        if len(written) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_unit_sensitivity(model, levers, groups, loss, measured=stop)
    read = {
        lever: {float(share): found for share, found in curve.items()}
        for lever, curve in json.loads(json.dumps(written)).items()
    }
    calls.clear()
    again = measure_unit_sensitivity(model, levers, groups, counted, known=read)
    assert again == whole
    assert len(calls) == 1 + sum(map(len, whole.values())) - sum(map(len, read.values()))
    calls.clear()
    assert measure_unit_sensitivity(model, levers, groups, counted, known=whole) == whole
    assert calls == []


def test_any_levels_can_be_asked_for():
    """Oracle: the measurement of all levels."""
    name = MIXED
    model, loss = BY_NAME[name].model().eval(), loss_of(name)
    levers, groups = levers_of(name)
    every = measure_unit_sensitivity(model, levers, groups, loss, levels=lambda lever: range(len(lever)))
    assert [len(curve) for curve in every.values()] == [len(lever) - 1 for lever in levers]
    assert any(abs(increase) > 1e-3 for curve in every.values() for increase in curve.values())
    first = levers[0]
    alone = measure_unit_sensitivity(
        model, levers, groups, loss, levels=lambda lever: [1] if lever is first else []
    )
    share = float(removed_shares(first)[1])
    assert alone == {first.name: {share: every[first.name][share]}}
    for level in (-1, len(first)):
        with pytest.raises(SelectionError, match=r"levels from 1 to"):
            measure_unit_sensitivity(model, levers, groups, loss, levels=lambda lever, at=level: [at])


@pytest.mark.parametrize("fails", ["error", "nan"])
def test_a_model_is_put_back_when_the_loss_fails(fails):
    name = MIXED
    model = BY_NAME[name].model()
    levers, groups = levers_of(name)
    before, seen = state_of(model), []

    def loss(net: nn.Module) -> float:
        seen.append(state_of(model) == before)
        if len(seen) == 2:
            if fails == "error":
                raise RuntimeError("out of data")
            return math.nan
        return 1.0

    level = middle_and_last(levers[0])[0]
    says = "raised RuntimeError: out of data" if fails == "error" else "The loss is nan"
    with pytest.raises(CalibrationError, match=says) as error:
        measure_unit_sensitivity(model, levers, groups, loss)
    assert error.value.where == f"lever '{levers[0].name}' at level {level}"
    assert isinstance(error.value.__cause__, RuntimeError) == (fails == "error")
    assert seen == [True, levers[0].group.is_depth or not levers[0].group.mask_equivalent]
    assert state_of(model) == before
    with pytest.raises(CalibrationError, match="the whole model"):
        measure_unit_sensitivity(model, levers, groups, lambda net: math.inf)


def test_a_smaller_graph_is_judged_in_the_models_own_mode():
    name = MIXED
    model = BY_NAME[name].model().train()
    levers, groups = levers_of(name)
    modes: list[bool] = []

    def loss(net: nn.Module) -> float:
        modes.append(net.training)
        return 0.0

    measure_unit_sensitivity(model, levers, groups, loss)
    assert modes
    assert all(modes)


class Stretched(nn.Module):
    """Neurons with an offset that is one number in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)
        self.register_buffer("offset", torch.randn(1).expand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) + self.offset)


def test_tensors_that_cannot_be_zero_in_places_are_left_to_the_graph():
    """Oracle: the pruned graph."""
    torch.manual_seed(0)
    model, x = Stretched().eval(), torch.randn(5, 4)
    groups = find_groups(trace(model, x))
    levers = find_levers(groups, {group.name: np.arange(group.size, dtype=np.float32) for group in groups})
    before = state_of(model)

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(net(x).square().mean())

    curves = measure_unit_sensitivity(model, levers, groups, loss)
    assert len(levers)
    assert state_of(model) == before
    for place, lever in enumerate(levers):
        keep = levers.masks([(len(lever) - 1) * (other == place) for other in range(len(levers))])
        expected = loss(reduced_graph(model, keep, groups)) - loss(model)
        assert list(curves[lever.name].values())[-1] == pytest.approx(expected, abs=1e-6)
