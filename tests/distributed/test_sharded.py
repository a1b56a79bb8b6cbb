"""Removal from a model that two processes shard, against the removal from the whole model in one process."""

from __future__ import annotations

import pytest
import torch
from tests.distributed.launching import launched_once
from tests.distributed.sharding import (
    GRANULARITIES,
    Tower,
    moved,
    on_meta,
    optimizer_of,
    plan_for,
    tower,
    trained,
    values,
    words,
)

import prunekit as pk
from prunekit.plan import PruningPlan

AFTER_TRAINING = 2e-4
"""The mean of gradients over processes rounds, and AdamW divides by their size; lost momentum is 1e-2 off."""


SAID = {
    "neurons": "mask law: holds for",
    "hidden": "mask law: no group to check; 1 groups are not mask-equivalent",
    "layers": "mask law: no group to check; whole layers go",
    "everything": "mask law: no group to check; whole layers go",
}
"""What the proof says of the mask law."""


CASES = [*((2, kind) for kind in GRANULARITIES), pytest.param((3, "everything"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """By their number, what each process found."""
    return launched_once(dict.fromkeys((2, 3), "tests.distributed.sharding:removals"), tmp_path_factory)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[1]} of {case[0]}")
def case(request):
    return request.param


@pytest.fixture
def kind(case):
    return case[1]


@pytest.fixture
def runs(launched, case):
    return launched(case[0])


def whole_model(found) -> Tower:
    """The dense model as the processes trained it, in one piece."""
    model = tower()
    model.load_state_dict(found["dense"], strict=False)
    model.scale.copy_(found["dense"]["scale"])
    return model


def test_all_processes_find_the_same(runs, kind):
    first, *others = [run[kind] for run in runs]
    for other in others:
        assert other["plan"] == first["plan"]
        for part in ("dense", "small", "after"):
            assert all(torch.equal(each, other[part][name]) for name, each in first[part].items())


def test_the_plan_is_that_of_the_whole_model(runs, kind):
    _, groups = on_meta()
    model = whole_model(runs[0][kind])
    plan = plan_for(model, groups.select(granularity=GRANULARITIES[kind]))
    assert plan.to_json() == runs[0][kind]["plan"]


def test_what_is_left_is_what_is_left_of_the_whole_model(runs, kind):
    found = runs[0][kind]
    expected = removed(found)[0].model
    assert values(expected).keys() == found["small"].keys()
    for name, value in values(expected).items():
        assert torch.equal(value, found["small"][name]), name
    assert [p.requires_grad for p in expected.parameters()] == found["trains"]
    assert set(found["parted"]) == {"DTensor"}


def test_the_proof_holds(runs, kind):
    found = runs[0][kind]
    assert found["passed"], found["proof"]
    assert SAID[kind] in found["proof"]


def test_the_optimizer_follows(runs, kind):
    """Three steps, the removal and three more, as one process makes them."""
    found = runs[0][kind]
    model = tower()
    optimizer = optimizer_of(model)
    trained(model, optimizer, range(3))
    removal, plan, groups = removed(found, model)
    report = pk.follow(optimizer, model, removal, plan, groups)
    assert found["narrowed"] == list(report.narrowed)
    assert found["reset"] == {} == dict(report.reset)
    trained(removal.model, optimizer, range(3, 6))
    close(found["after"], values(removal.model))
    removal.model.eval()
    torch.testing.assert_close(
        found["outputs"], removal.model(words()).detach(), rtol=10 * AFTER_TRAINING, atol=10 * AFTER_TRAINING
    )


def test_movement_is_that_of_the_whole_model(launched):
    expected = moved(whole_model(launched(2)[0]["neurons"]), on_meta()[1].select(granularity="neuron"))
    for run in launched(2):
        for name, value in expected.items():
            torch.testing.assert_close(
                run["neurons"]["movement"][name], value, rtol=1e-4, atol=1e-6, equal_nan=True
            )


def removed(found, model=None):
    """The removal from the whole model, with the groups found on it."""
    model = whole_model(found) if model is None else model
    groups = pk.find_groups(pk.trace(model, (words(),)))
    plan = PruningPlan.from_json(found["plan"])
    return pk.remove(model, plan, groups), plan, groups


def close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=AFTER_TRAINING, atol=AFTER_TRAINING)
