"""Goals that a target measures, reached on a small network; oracles: exact counts, files and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import GoalError, MeasurementError, SelectionError
from prunekit.measure import file_size
from prunekit.targeting.measuring import certainty, check_steady, timed_interval


class Network(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def in_one(folder: Path, *, variants: int = 2) -> pk.Timing:
    """Few variants, and everything that is kept in one folder."""
    return pk.Timing(variants=variants, seconds=0.05, folder=folder, tables=folder)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> pk.Planner:
    torch.manual_seed(0)
    return pk.measure_target(
        Network().eval(),
        torch.randn(2, 3, 16, 16),
        target=pk.Target("onnxruntime", threads=1, batch=4),
        space=pk.Space(most_levels=5),
        timing=pk.Timing(
            variants=3,
            seconds=0.05,
            folder=tmp_path_factory.mktemp("exports"),
            tables=tmp_path_factory.mktemp("tables"),
        ),
    )


@pytest.fixture(scope="module")
def halved(planner: pk.Planner):
    """What half of the parameters gave."""
    return planner.reach(pk.Goal("params", remove=0.5, tolerance=0.2))


def test_what_is_predicted_of_no_cut_is_the_dense_model(planner):
    nothing = np.zeros(len(planner.costs.levers), dtype=int)
    cost = planner.groups.cost()
    assert planner.costs.params.at(nothing) == cost.params
    assert planner.costs.param_bytes.at(nothing) == cost.param_bytes
    assert planner.costs.macs.at(nothing) == 4 * cost.macs
    assert len(planner.costs.latency.errors) == len(planner.costs.latency.models) == 4


def assert_is_half(reached, kind: str) -> None:
    before, after = getattr(reached.plan.before, kind), getattr(reached.plan.after, kind)
    assert after / (before / 2) - 1 <= 0.2
    assert reached.overdone or after / (before / 2) - 1 >= -0.2


def test_a_counted_goal_is_met_by_the_model_itself(planner, halved):
    removal, proof = planner.remove(halved)
    assert proof.passed
    assert_is_half(halved, "params")
    assert halved.plan.after.params == sum(parameter.numel() for parameter in removal.model.parameters())


@pytest.mark.slow
def test_a_goal_in_macs_is_met(planner):
    assert_is_half(planner.reach(pk.Goal("macs", remove=0.5, tolerance=0.2)), "macs")


def test_a_size_is_that_of_the_file(planner):
    dense = file_size(planner.rig.artifact(planner.model, "dense").path)
    goal = pk.Goal("size_bytes", reach=0.6 * dense, tolerance=0.1)
    reached = planner.reach(goal)
    small = reached.measured[str(goal)]
    assert small / (0.6 * dense) - 1 <= 0.1
    assert reached.overdone or small / (0.6 * dense) - 1 >= -0.1
    written = {file_size(path) for path in planner.rig.folder.glob("*plan-*.onnx")}
    assert small in written


def test_several_goals_are_all_met_and_no_operation_is_timed_again(planner):
    before = dict(planner.costs.latency.times.ms)
    goals = [pk.Goal("params", remove=0.3, tolerance=0.1), pk.Goal("macs", remove=0.6, tolerance=0.1)]
    plan = planner.reach(goals).plan
    assert plan.after.params <= 0.7 * plan.before.params * 1.1
    assert plan.after.macs <= 0.4 * plan.before.macs * 1.1
    assert planner.costs.latency.times.ms == before


def test_a_bound_on_a_loss_that_was_not_measured_is_refused(planner):
    with pytest.raises(GoalError, match="no loss was measured"):
        planner.reach(pk.Goal("quality_drop", reach=0.01))


def test_a_bound_on_the_loss_makes_the_latency_least(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval(), torch.randn(64, 16)
    dense = model(x).detach()

    @torch.no_grad()
    def loss(small: nn.Module) -> float:
        return float((small(x) - dense).square().mean())

    target = pk.Target("onnxruntime", threads=1, batch=8)
    planner = pk.measure_target(
        model, x[:2], target=target, space=pk.Space(most_levels=4), loss=loss, timing=in_one(tmp_path)
    )
    most = sum(float(curve.losses[-1]) for curve in planner.curves)
    strict, loose = (
        planner.reach(pk.Goal("quality_drop", reach=bound)).attempts[-1] for bound in (most / 100, 2 * most)
    )
    assert max(strict.measured.values()) <= most / 100
    assert loose.objective <= strict.objective


def test_a_model_without_a_lever_is_refused_before_anything_is_timed():
    target = pk.Target("onnxruntime", threads=1)
    with pytest.raises(SelectionError, match="No group may lose a unit"):
        pk.measure_target(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), target=target)


def test_another_model_in_the_same_folder_is_exported_anew(planner):
    other = pk.measure_target(
        Network(16).eval(),
        torch.randn(2, 3, 16, 16),
        target=pk.Target("onnxruntime", threads=1, batch=4),
        space=pk.Space(most_levels=2),
        timing=in_one(planner.rig.folder, variants=1),
    )
    ours, theirs = (each.rig.artifact(each.model, "dense").path for each in (planner, other))
    assert Path(ours).parent == Path(theirs).parent
    assert file_size(theirs) < file_size(ours)


def test_a_plan_survives_being_written_down(halved):
    assert pk.PruningPlan.from_json(halved.plan.to_json()) == halved.plan


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (pk.Goal("speedup", reach=1000), "out of reach"),
        (pk.Goal("latency_ms", reach=1e-6), "out of reach"),
        (pk.Goal("memory_bytes", reach=1000), "the runtime"),
    ],
)
def test_a_goal_beyond_the_smallest_model_says_how_far_it_goes(planner, goal, says):
    with pytest.raises(GoalError, match=says):
        planner.reach(goal)


def test_noise_is_told_with_the_pairs_it_takes(halved):
    comparison = halved.comparison
    goal = pk.Goal("speedup", reach=2, tolerance=1e-9)
    with pytest.raises(MeasurementError, match="pairs would be needed"):
        check_steady(comparison, goal)
    known = certainty(timed_interval(goal, comparison, batch=4), 0.01)
    assert known.needed == pytest.approx(known.runs * (known.half_width / 0.01) ** 2, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "torch_eager"])
def test_other_runtimes_reach_counts_too(runtime, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    target = pk.Target(runtime, threads=1, batch=8)
    planner = pk.measure_target(
        model, torch.randn(2, 16), target=target, space=pk.Space(most_levels=8), timing=in_one(tmp_path)
    )
    plan = planner.reach(pk.Goal("params", remove=0.5, tolerance=0.2)).plan
    assert plan.after.params <= 1.2 * plan.before.params / 2


@pytest.mark.slow
def test_where_levels_are_too_coarse_the_goal_is_overdone_rather_than_missed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    target = pk.Target("onnxruntime", threads=1, batch=8)
    planner = pk.measure_target(
        model, torch.randn(2, 16), target=target, space=pk.Space(most_levels=3), timing=in_one(tmp_path)
    )
    reached = planner.reach(pk.Goal("params", remove=0.3, tolerance=0.01), attempts=4)
    assert reached.overdone
    assert reached.plan.after.params <= 0.7 * reached.plan.before.params
