"""``pk.prune``: what its arguments do, what it gives, and how it says no."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.zoo import oracles
from tests.zoo.toys import BY_NAME, CASES
from torch import nn

import prunekit as pk
from prunekit.errors import (
    CalibrationError,
    GoalError,
    ProofError,
    SelectionError,
    TraceError,
    WorkloadError,
)
from prunekit.plan import Limits
from prunekit.types import WIDTHS
from prunekit.workload import Batch


def pruned(name: str, **arguments):
    case = BY_NAME[name]
    return pk.prune(case.model(), *case.inputs(), **arguments)


@pytest.mark.parametrize(
    "name",
    # The laws of each step hold for every toy, always (tests/contracts): here a few go through all of them.
    [pytest.param(case.name, marks=[pytest.mark.slow] * (place % 5 > 0)) for place, case in enumerate(CASES)],
)
def test_every_toy_is_pruned_by_half_and_proved(name):
    case = BY_NAME[name]
    model = case.model()
    before = copy.deepcopy(model.state_dict())
    result = pk.prune(model, *case.inputs(), sparsity=0.5)
    assert result.proof.passed
    assert {group.granularity for group in result.groups} <= WIDTHS
    assert result.plan.after.params < result.plan.before.params
    assert oracles.counted_cost(result.model, case.inputs())[0] == result.plan.after.params
    assert result.form == ("own class" if case.own_class else "graph module")
    assert result.form_reason
    for kept, size in ((after, before) for before, after in result.plan.widths.values()):
        assert kept <= size
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class TestArguments:
    def test_one_tensor_may_come_without_its_tuple(self):
        model, x = BY_NAME["perceptron"].model(), torch.randn(2, 6)
        assert pk.prune(model, x).plan == pk.prune(model, (x,)).plan

    @pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
    def test_sparsity_is_the_share_of_every_group(self, sparsity):
        result = pruned("basic blocks", sparsity=sparsity)
        for size, kept in result.plan.widths.values():
            assert kept == math.floor(size * (1 - sparsity) + 0.5)

    @pytest.mark.parametrize("goal", ["macs", "params"])
    @pytest.mark.parametrize("scope", ["uniform", "global"])
    def test_goal_is_of_the_whole_model(self, goal, scope):
        result = pruned("bottlenecks", sparsity=0.4, goal=goal, scope=scope)
        before, after = getattr(result.plan.before, goal), getattr(result.plan.after, goal)
        assert after == pytest.approx(0.6 * before, rel=0.02)
        inputs = BY_NAME["bottlenecks"].inputs()
        assert after == oracles.counted_cost(result.model, inputs)[goal == "macs"]

    def test_l2_keeps_the_units_with_the_largest_weights(self):
        """Closed form: rows of a perceptron of one hidden layer scaled by 1 .. 6, in and out."""
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
        order = torch.tensor([3.0, 1.0, 6.0, 2.0, 5.0, 4.0])
        with torch.no_grad():
            model[0].weight.copy_(order[:, None].expand(6, 4))
            model[2].weight.copy_(order[None].expand(2, 6))
        for criterion in ("l1", "l2"):
            result = pk.prune(model, torch.randn(2, 4), criterion=criterion)
            assert list(result.plan.keep.values()) == [(2, 4, 5)]

    def test_a_fallback_scores_what_the_criterion_says_nothing_about(self):
        with pytest.raises(SelectionError, match="'bn_scale' says nothing about the groups"):
            pruned("perceptron", criterion="bn_scale")
        found = pruned("perceptron", criterion="bn_scale", fallback="l2")
        expected = pruned("perceptron", criterion="l2")
        kept, wanted = found.plan.keep_mask(), expected.plan.keep_mask()
        assert {name: mask.tolist() for name, mask in kept.items()} == {
            name: mask.tolist() for name, mask in wanted.items()
        }

    def test_taylor_keeps_the_units_that_the_loss_depends_on(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        with torch.no_grad():
            model[2].weight[:, [0, 2, 3]] = 0.0
            model[2].weight[:, [1, 4, 5]] = 1.0
        x = torch.randn(16, 4)
        batch = Batch((x,), {}, torch.zeros(16, 2), tuple(map(str, range(16))))
        result = pk.prune(
            model,
            x[:2],
            criterion="taylor",
            calibration=[batch],
            loss=lambda outputs, batch: (outputs - batch.target).square().mean(),
        )
        assert list(result.plan.keep.values()) == [(1, 4, 5)]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_granularity_narrows_the_kinds(self):
        result = pruned("attention", granularity=["head"], sparsity=0.34)
        assert [group.granularity for group in result.groups] == ["head"]
        assert result.model.get_parameter("attention.q.weight").shape == (8, 12)
        assert "granularity hidden was not asked for" in {item.reason for item in result.frozen}

    def test_channel_groups_go_only_on_request(self):
        assert "channel_group" not in {g.granularity for g in pruned("grouped convolution").groups}
        result = pruned("grouped convolution", granularity=["channel_group"], sparsity=0.34)
        assert result.model.get_submodule("blocks.0.conv2").groups == 2

    def test_only_and_ignore(self):
        result = pruned("basic blocks", only=["blocks.*"], ignore=["stem"])
        assert result.model.get_parameter("stem.weight").shape == (8, 3, 3, 3)
        assert result.model.get_parameter("blocks.0.conv1.weight").shape == (4, 8, 3, 3)

    @pytest.mark.parametrize(
        ("one", "several"),
        [
            ({"only": "blocks.*"}, {"only": ["blocks.*"]}),
            ({"ignore": "stem"}, {"ignore": ("stem",)}),
            ({"granularity": "channel"}, {"granularity": {pk.Granularity.CHANNEL}}),
            ({"granularity": pk.Granularity.CHANNEL}, {"granularity": ["channel"]}),
        ],
    )
    def test_one_name_stands_for_a_list_of_one(self, one, several):
        first, second = pruned("basic blocks", **one), pruned("basic blocks", **several)
        assert first.plan == second.plan
        assert [group.name for group in first.groups] == [group.name for group in second.groups]

    def test_limits_for_all_groups_and_for_some(self):
        free = pruned("basic blocks").plan.widths
        assert free["stem:channel"] == (8, 4)
        held = pruned(
            "basic blocks", limits=Limits(min_units=5), per_group={"stem": Limits(min_units=7)}
        ).plan.widths
        assert held == {
            name: (size, 7 if name == "stem:channel" else max(kept, min(size, 5)))
            for name, (size, kept) in free.items()
        }

    def test_the_random_criterion_follows_its_seed(self):
        plans = [pruned("basic blocks", criterion="random", seed=seed).plan for seed in (1, 1, 2)]
        assert plans[0] == plans[1] != plans[2]

    def test_it_gives_the_same_twice(self):
        first, second = pruned("attention"), pruned("attention")
        assert first.plan == second.plan
        assert first.proof == second.proof
        tensors = second.model.state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in first.model.state_dict().items())

    def test_mode_stays(self):
        assert pruned("training mode").model.training
        model = BY_NAME["dropout"].model().eval()
        assert not pk.prune(model, *BY_NAME["dropout"].inputs()).model.training


class TestErrors:
    def test_unknown_criterion(self):
        with pytest.raises(SelectionError, match="no criterion 'l3'") as caught:
            pruned("perceptron", criterion="l3")
        assert "l2" in caught.value.expected

    def test_unknown_granularity(self):
        with pytest.raises(SelectionError, match="'chanel' is not a granularity"):
            pruned("perceptron", granularity=["chanel"])

    @pytest.mark.parametrize("argument", ["only", "ignore"])
    def test_pattern_that_matches_nothing(self, argument):
        with pytest.raises(SelectionError, match=r"'layer9\.\*' matches no"):
            pruned("perceptron", **{argument: ["layer9.*"]})

    @pytest.mark.parametrize("sparsity", [1.2, 1.0, -0.1, math.nan, "half", True])
    def test_sparsity_outside_its_range(self, sparsity):
        model = BY_NAME["perceptron"].model()
        with pytest.raises(GoalError) as caught:
            pk.prune(model, torch.randn(2, 6), sparsity=sparsity)
        assert caught.value.exit_code == 2

    def test_unknown_goal_and_scope(self):
        with pytest.raises(GoalError, match="'flops'"):
            pruned("perceptron", goal="flops")
        with pytest.raises(SelectionError, match="'local'"):
            pruned("perceptron", scope="local")

    def test_a_sparsity_that_rounds_to_nothing(self):
        with pytest.raises(GoalError, match=r"removes nothing at all: .*round_to=100"):
            pruned("basic blocks", limits=Limits(round_to=100))
        with pytest.raises(GoalError, match=r"0\.03 of it is"):
            pruned("basic blocks", sparsity=0.03)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"only": [1]}, SelectionError, r"only: \[1\] was given"),
            ({"only": 3}, SelectionError, "only: 3 was given"),
            ({"only": {"stem": 1}}, SelectionError, "only: .*was given"),
            ({"ignore": None}, SelectionError, "ignore: None was given"),
            ({"ignore": "layer9"}, SelectionError, "'layer9' matches no"),
            ({"granularity": "chanel"}, SelectionError, "'chanel' is not a granularity"),
            ({"granularity": [1]}, SelectionError, r"granularity: \[1\] was given"),
            ({"granularity": 3}, SelectionError, "granularity: 3 was given"),
            ({"criterion": ["l1"]}, SelectionError, "no criterion"),
            ({"scope": ["uniform"]}, SelectionError, "The scope is"),
            ({"goal": ["macs"]}, GoalError, "The goal is"),
            ({"sparsity": "a"}, GoalError, "is 'a'"),
            ({"sparsity": math.nan}, GoalError, "is nan"),
            ({"sparsity": None}, GoalError, "remove=None"),
            ({"seed": -1}, SelectionError, "The seed is -1"),
            ({"seed": "x"}, SelectionError, "The seed is 'x'"),
            ({"seed": 1.5}, SelectionError, "The seed is 1.5"),
            ({"seed": True}, SelectionError, "The seed is True"),
            ({"seed": 2**64}, SelectionError, "The seed is"),
            ({"calibration": 3}, CalibrationError, "calibration: The calibration data are a int"),
            ({"calibration": torch.zeros(2, 6)}, CalibrationError, "are a Tensor"),
            ({"limits": 8}, SelectionError, "limits=8"),
            ({"per_group": {"nowhere": Limits()}}, SelectionError, "'nowhere' matches no prunable group"),
            ({"per_group": {"0": Limits(min_units=99)}}, SelectionError, "at least 99 units and has"),
        ],
    )
    def test_an_argument_of_another_kind_is_explained(self, arguments, error, message):
        with pytest.raises(error, match=message) as caught:
            pruned("perceptron", **arguments)
        assert caught.value.given
        assert caught.value.expected

    @pytest.mark.parametrize("batch", [torch.zeros(2, 6), (torch.zeros(2, 6), 1), "x", {"args": ()}])
    def test_a_batch_that_is_none_says_how_to_make_one(self, batch):
        with pytest.raises(CalibrationError, match="calibration batch 0: It is a") as caught:
            pruned("perceptron", criterion="taylor", calibration=[batch], loss=lambda *_: torch.zeros(()))
        assert "Batch(args=(x,)" in caught.value.remedy

    def test_a_loss_that_cannot_be_called(self):
        batch = Batch((torch.zeros(2, 6),), {}, None, ("a", "b"))
        with pytest.raises(CalibrationError, match="need a loss and a int was given"):
            pruned("perceptron", criterion="taylor", calibration=[batch], loss=3)

    @pytest.mark.parametrize("inputs", [torch.zeros(0, 6), (torch.zeros(0, 6),), 3, "x"])
    def test_example_inputs_without_an_example(self, inputs):
        with pytest.raises(WorkloadError, match=r"shape|args is"):
            pk.prune(BY_NAME["perceptron"].model(), inputs)

    def test_a_goal_out_of_reach_says_how_near_it_comes(self):
        with pytest.raises(GoalError, match="nearest found"):
            pruned("tied weights", sparsity=0.99, goal="params")

    def test_nothing_to_prune_names_the_reasons(self):
        model = nn.Linear(3, 4)
        with pytest.raises(SelectionError, match="nothing in Linear can be pruned") as caught:
            pk.prune(model, torch.randn(2, 3))
        assert "outputs keep their shape" in caught.value.remedy

    def test_removing_nothing_from_nothing_is_fine(self):
        model = nn.Linear(3, 4)
        result = pk.prune(model, torch.randn(2, 3), sparsity=0.0)
        assert torch.equal(result.model.weight, model.weight)
        assert result.proof.passed

    def test_gradients_are_asked_for_and_no_data_is_given(self):
        with pytest.raises(CalibrationError):
            pruned("perceptron", criterion="taylor")

    def test_a_model_that_cannot_be_traced(self):
        with pytest.raises(TraceError, match="Linear"):
            pk.prune(nn.Linear(3, 4), torch.randn(2, 5))

    def test_a_model_with_weights_that_are_not_finite(self):
        model = BY_NAME["perceptron"].model()
        with torch.no_grad():
            model[0].weight[0, 0] = math.nan
        with pytest.raises(ProofError, match=r"not finite; the parameter '0\.weight' holds NaN"):
            pk.prune(model, torch.randn(2, 6))

    def test_errors_leave_the_model_alone(self):
        model = BY_NAME["basic blocks"].model()
        before = copy.deepcopy(model.state_dict())
        for arguments in ({"sparsity": 1.2}, {"only": ["x"]}, {"criterion": "l3"}, {"granularity": ["x"]}):
            with pytest.raises((SelectionError, GoalError)):
                pk.prune(model, *BY_NAME["basic blocks"].inputs(), **arguments)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert all(module.training for module in model.modules())


def test_a_submodule_can_be_pruned_alone():
    """Its inputs and outputs keep their widths, so it fits back where it was."""
    case = BY_NAME["basic blocks"]
    model = case.model()
    block = pk.prune(model.blocks[1], torch.randn(2, 8, 8, 8))
    model.blocks[1] = block.model
    args, _ = case.inputs()
    assert model(*args).shape == (2, 5)
    assert block.model.conv1.weight.shape == (6, 8, 3, 3)
    assert block.model.conv2.weight.shape == (12, 6, 3, 3)


def test_stages_by_hand_give_what_the_one_call_gives():
    case = BY_NAME["dense block"]
    model, (args, kwargs) = case.model(), case.inputs()
    groups = pk.find_groups(pk.trace(model, args, kwargs)).select(granularity=WIDTHS)
    scores = pk.score(model, groups, "l2")
    plan = pk.allocate(groups, scores, pk.Goal("sparsity", remove=0.5), criterion="l2")
    removal = pk.remove(model, plan, groups)
    assert pk.verify(model, removal.model, plan, groups).passed
    result = pk.prune(model, args, kwargs)
    assert result.plan == plan
    tensors = result.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in removal.model.state_dict().items())


def test_pruning_twice_goes_on_from_the_first_result():
    case = BY_NAME["basic blocks"]
    first = pk.prune(case.model(), *case.inputs(), sparsity=0.5)
    second = pk.prune(first.model, *case.inputs(), sparsity=0.5)
    assert second.plan.before == first.plan.after
    assert all(
        np.isclose(after, math.floor(before / 2 + 0.5)) for before, after in second.plan.widths.values()
    )
