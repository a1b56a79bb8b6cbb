"""Plans that continue each other: exact against the parent, nothing comes back, steps compose."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.workflow.tiny_workload import Net

from prunekit.errors import PlanError
from prunekit.graph import find_groups, trace
from prunekit.plan import Goal, allocate
from prunekit.plan.cycles import Continued, continued_scores, goal_of_cycle, joined, step
from prunekit.recover import shares
from prunekit.surgery import remove
from prunekit.types import WIDTHS, Cost

IMAGES = torch.zeros(2, 1, 8, 8)
DENSE = Cost(params=1000, macs=10_000, param_bytes=4000)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


def widths_in(model):
    """Layers go in one cycle."""
    return find_groups(trace(model, IMAGES)).select(granularity=WIDTHS)


def cycle_through(model, goal, cycles, *, scope, seed=0, **limits):
    """Plan over some cycles as the workflow does, with scores drawn anew in every cycle."""
    rng = np.random.default_rng(seed)
    groups = widths_in(model)
    plans, smaller = [], [groups]
    for share in shares("cubic", cycles):
        before = plans[-1] if plans else None
        scores = {group.name: rng.random(group.size, dtype=np.float32) for group in smaller[-1]}
        continued = Continued(groups, before)
        whole = continued_scores(groups, scores, before)
        asked = goal_of_cycle(goal, share, groups.cost())
        plans.append(joined(allocate(continued, whole, asked, scope=scope, **limits), continued))
        smaller.append(widths_in(remove(model, plans[-1], groups).model))
    return groups, plans, smaller


CASES = [
    (Goal("sparsity", remove=0.5), "uniform", {}),
    (Goal("sparsity", remove=0.5), "global", {}),
    (Goal("macs", remove=0.6, tolerance=0.05), "uniform", {}),
    (Goal("macs", remove=0.6, tolerance=0.05), "global", {}),
    (Goal("params", reach=1500, tolerance=0.05), "global", {"round_to": 2}),
    (Goal("sparsity", remove=0.4), "global", {"max_sparsity": 0.5}),
]


@pytest.mark.parametrize(("goal", "scope", "limits"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_cycle_continues_the_one_before_and_the_last_meets_the_goal(model, goal, scope, limits, seed):
    groups, plans, smaller = cycle_through(model, goal, 3, scope=scope, seed=seed, **limits)
    for earlier, later in pairwise(plans):
        for name, kept in earlier.keep.items():
            assert set(later.keep[name]) <= set(kept)
    last = plans[-1]
    assert last.before == groups.cost()
    assert (
        last.after == groups.cost(last.keep_mask()) == smaller[-1].cost()
    )  # oracle: the model that was made
    figures = {"macs": last.after.macs, "params": last.after.params}
    if goal.kind in figures:
        dense = groups.cost().macs if goal.kind == "macs" else groups.cost().params
        assert goal.is_reached(figures[goal.kind], goal.asked(dense))
    elif scope == "uniform":
        assert {name: after / before for name, (before, after) in last.widths.items()} == dict.fromkeys(
            last.sizes, 0.5
        )
    else:
        left = sum(after for _, after in last.widths.values())
        assert goal.is_reached(left, goal.asked(sum(last.sizes.values())))
    for before, after in last.widths.values():
        assert 1 - after / before <= limits.get("max_sparsity", 0.9)
        assert after % limits.get("round_to", 1) == 0 or after == before


def test_a_step_composes_with_what_was_before(model):
    """Law: ``earlier.then(step(earlier, plan))`` keeps what ``plan`` keeps."""
    _, plans, smaller = cycle_through(model, Goal("sparsity", remove=0.5), 3, scope="global")
    for earlier, later, groups in zip(plans, plans[1:], smaller[1:], strict=False):
        delta = step(earlier, later, groups)
        assert earlier.then(delta).keep == later.keep
        assert delta.fingerprint == groups.fingerprint
        assert delta.before == earlier.after == groups.cost()
    assert step(None, plans[0], smaller[0]) is plans[0]


def test_a_step_for_another_model_is_refused(model):
    groups, plans, _ = cycle_through(model, Goal("sparsity", remove=0.5), 2, scope="uniform")
    with pytest.raises(PlanError, match="units that the earlier plan leaves"):
        step(plans[0], plans[1], groups)


def test_units_that_are_gone_have_the_lowest_scores(model):
    groups, plans, _ = cycle_through(model, Goal("sparsity", remove=0.5), 1, scope="uniform")
    scores = {group.name: np.zeros(group.size // 2, dtype=np.float32) for group in groups}
    for name, values in continued_scores(groups, scores, plans[0]).items():
        assert set(np.flatnonzero(values < 0)) == set(plans[0].removed(name))


def test_the_goal_of_a_cycle_is_its_share_of_the_way():
    assert goal_of_cycle(Goal("sparsity", remove=0.5), 0.5, DENSE).remove == 0.25
    assert goal_of_cycle(Goal("macs", reach=4000), 0.5, DENSE).reach == 7000
    assert goal_of_cycle(Goal("params", reach=400), 0.5, DENSE).reach == 700
    last = Goal("macs", reach=4001, tolerance=0.01)
    assert goal_of_cycle(last, 1.0, DENSE) is last
