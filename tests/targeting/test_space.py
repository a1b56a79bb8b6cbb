"""What may go and how it is timed: said once, within stated ranges, and nothing is left behind."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from tests.targeting.conftest import network

import prunekit as pk
from prunekit.errors import MeasurementError, SelectionError, StorageError
from prunekit.plan.levers import find_levers
from prunekit.plan.limits import allowed_counts
from prunekit.targeting.rig import rig_for
from prunekit.targeting.space import NARROWEST


@pytest.fixture(scope="module")
def groups():
    return pk.find_groups(pk.trace(network(), torch.randn(4, 12)))


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"most_levels": 1}, "most_levels"),
        ({"most_levels": True}, "most_levels"),
        ({"most_levels": 2.5}, "most_levels"),
        ({"limits": 0.9}, "limits"),
    ],
)
def test_a_space_that_cannot_be_is_refused_when_it_is_made(said, where):
    with pytest.raises(SelectionError, match=where):
        pk.Space(**said)


@pytest.mark.parametrize("variants", [0, -1, True, 1.5])
def test_so_is_a_timing(variants):
    with pytest.raises(MeasurementError, match="variants"):
        pk.Timing(variants=variants)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "3"])
def test_nor_may_the_seconds_be_anything(seconds):
    with pytest.raises(MeasurementError, match="seconds"):
        pk.Timing(seconds=seconds)


@pytest.mark.parametrize("limits", [pk.Limits(), pk.Limits(round_to=8), pk.Limits(max_sparsity=0.5)])
def test_a_group_keeps_a_tenth_unless_a_limit_says_otherwise(groups, limits):
    """Oracle: the counts that the same limits allow, over 0.9."""
    scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
    levers = pk.Space(limits=limits, most_levels=100).levers(groups, scores)
    for lever in levers:
        if lever.unit is None:
            assert lever.kept[-1] == allowed_counts(lever.group, limits.over(NARROWEST))[-1]


def test_one_group_may_have_limits_of_its_own(groups):
    """Oracle: the levers that the plan itself would find."""
    scores = {group.name: np.arange(group.size, dtype=np.float32) for group in groups}
    own = {groups.prunable[1].name: pk.Limits(max_sparsity=0.25)}
    found = pk.Space("neuron", per_group=own).select(groups)
    levers = pk.Space("neuron", per_group=own).levers(found, scores)
    expected = find_levers(found.prunable, scores, limits=NARROWEST, per_group=own)
    assert [lever.kept.tolist() for lever in levers] == [lever.kept.tolist() for lever in expected]


def test_by_default_the_kinds_go_that_the_model_has(groups):
    kinds = {group.granularity.value for group in pk.Space().select(groups)}
    assert kinds == {group.granularity.value for group in groups} - {"hidden", "branch"}
    assert {group.granularity.value for group in pk.Space("neuron").select(groups)} == {"neuron"}


def test_a_folder_that_nobody_gave_goes_with_the_rig(groups):
    rig = rig_for(groups.graph, pk.Target("onnxruntime", batch=4))
    folder = rig.folder
    rig.artifact(network(), "dense")
    assert list(folder.glob("*.onnx"))
    del rig
    gc.collect()
    assert not folder.exists()


def test_a_folder_that_was_given_stays(groups, tmp_path):
    rig = rig_for(groups.graph, pk.Target("onnxruntime", batch=4), tmp_path)
    rig.artifact(network(), "dense")
    del rig
    gc.collect()
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["dense.onnx"]


def test_a_folder_that_is_not_there_is_refused_before_anything_is_traced(tmp_path):
    timing = pk.Timing(folder=tmp_path / "absent")
    with pytest.raises(StorageError, match="absent"):
        pk.measure_target(torch.nn.Identity(), target=pk.Target("onnxruntime"), timing=timing)
