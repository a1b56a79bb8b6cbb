"""The laws catch what is wrong: a slice too few, too many or misaligned, a wrong removal, a wrong form."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from tests.zoo.toys import BY_NAME, CASES, groups_of
from torch import nn

from prunekit.errors import PlanError, ProofError
from prunekit.graph import Groups, find_groups, trace
from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.surgery import check_mask, check_permutation, remove, sound, verify
from prunekit.surgery.laws import block_permutation
from prunekit.types import Granularity, Group, Slice

COUPLED = tuple(case.name for case in CASES if len(case.groups) > 1)
MASKED = tuple(
    case.name
    for case in CASES
    if len(case.groups) > 1 and any(group.mask_equivalent for group in case.groups)
)


def with_group(groups: Groups, wrong: Group) -> Groups:
    """The same groups with one replaced, as a mistaken engine would have found it."""
    twin = copy.copy(groups)
    twin.prunable = tuple(wrong if group.name == wrong.name else group for group in groups.prunable)
    twin._everything = {group.name: group for group in twin.prunable}
    return twin


def plan_of(groups: Groups, sparsity: float = 0.5, seed: int = 2) -> PruningPlan:
    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    return allocate(groups, scores, Goal("sparsity", remove=sparsity if len(groups) else 0.0))


@pytest.mark.slow  # With plans by score: test_one_call.py.
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_toys_obey_all_laws(name):
    model, groups = BY_NAME[name].model(), groups_of(name)
    plan = plan_of(groups)
    proof = verify(model, remove(model, plan, groups).model, plan, groups)
    assert proof.passed, str(proof)
    assert [law.law for law in proof.laws] == ["permutation", "mask", "form", "use"]
    assert all(law.max_relative_error < 1e-9 for law in proof.laws)
    assert all(len(set(law.batch_sizes)) == 2 for law in proof.laws[:3])
    assert set(proof.laws[2].groups) == set(proof.laws[3].groups) == set(plan.keep)


class TestPermutationLaw:
    @pytest.mark.parametrize(
        "name", ["basic blocks", "dense block", "u-net", "inverted residual", "rms norm"]
    )
    def test_every_missing_slice_is_caught(self, name):
        model, groups = BY_NAME[name].model(), groups_of(name)
        for group in groups:
            for part in group.slices:
                wrong = dataclasses.replace(group, slices=tuple(s for s in group.slices if s is not part))
                law = check_permutation(model, with_group(groups, wrong), [group.name])
                assert not law.passed, (group.name, part.tensor, part.dim)
                assert law.max_relative_error > law.tolerance

    def test_a_superfluous_slice_is_caught(self):
        model, groups = BY_NAME["perceptron"].model(), groups_of("perceptron")
        first, _ = groups
        extra = Slice("4.weight", 1, np.array([*range(8), -1, -1]), "consumer")
        wrong = dataclasses.replace(first, slices=(*first.slices, extra))
        assert not check_permutation(model, with_group(groups, wrong)).passed

    def test_a_misaligned_slice_is_caught(self):
        """A U-Net whose skip connection is taken for the second half of the concatenation."""
        model, groups = BY_NAME["u-net"].model(), groups_of("u-net")
        group = next(group for group in groups if group.size == 4)
        slices = tuple(
            dataclasses.replace(part, units=np.roll(part.units, 1)) if part.tensor == "merge.weight" else part
            for part in group.slices
        )
        wrong = dataclasses.replace(group, slices=slices)
        assert not check_permutation(model, with_group(groups, wrong), [group.name]).passed

    def test_units_said_to_be_independent_in_blocks_they_are_not_in(self):
        """A head dimension is one of its own head's, so it cannot change places with another head's."""
        model, groups = BY_NAME["attention"].model(), groups_of("attention")
        heads = next(group for group in groups if group.granularity == Granularity.HEAD_DIM)
        wrong = dataclasses.replace(heads, blocks=1)
        assert not check_permutation(model, with_group(groups, wrong), [heads.name], seed=1).passed

    def test_a_norm_scale_that_starts_at_zero_does_not_hide_a_mistake(self):
        """Residual branches often end in a norm with scale 0, and give nothing until trained."""
        model, groups = BY_NAME["basic blocks"].model(), groups_of("basic blocks")
        with torch.no_grad():
            for name in ("blocks.0.bn2", "blocks.1.bn2"):
                nn.init.zeros_(model.get_parameter(f"{name}.weight"))
                nn.init.zeros_(model.get_parameter(f"{name}.bias"))
        group = next(g for g in groups if g.tensors[0] == "blocks.0.conv1.weight")
        for part in group.slices:
            wrong = dataclasses.replace(group, slices=tuple(s for s in group.slices if s is not part))
            assert not check_permutation(model, with_group(groups, wrong), [group.name]).passed, part.tensor

    def test_weights_that_are_all_equal_do_not_hide_a_mistake(self):
        model, groups = BY_NAME["perceptron"].model(), groups_of("perceptron")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        first, _ = groups
        wrong = dataclasses.replace(first, slices=first.slices[:-1])
        assert not check_permutation(model, with_group(groups, wrong), [first.name]).passed

    def test_a_dead_activation_does_not_hide_a_mistake(self):
        model, groups = BY_NAME["basic blocks"].model(), groups_of("basic blocks")
        nn.init.constant_(model.get_parameter("blocks.0.bn1.bias"), -100.0)
        group = next(g for g in groups if g.tensors[0] == "blocks.0.conv1.weight")
        wrong = dataclasses.replace(group, slices=group.slices[1:])
        assert not check_permutation(model, with_group(groups, wrong), [group.name]).passed

    @pytest.mark.parametrize(("size", "blocks"), [(2, 1), (3, 1), (8, 1), (4, 2), (12, 3), (9, 3)])
    def test_no_unit_stays_where_it_is(self, size, blocks):
        group = Group("g", Granularity.CHANNEL, size, blocks, ())
        for seed in range(20):
            order = block_permutation(group, np.random.default_rng(seed))
            assert sorted(order.tolist()) == list(range(size))
            assert (order // (size // blocks) == np.arange(size) // (size // blocks)).all()
            assert (order != np.arange(size)).all()

    def test_what_breaks_the_law_is_frozen_and_the_rest_is_kept(self):
        model, groups = BY_NAME["basic blocks"].model(), groups_of("basic blocks")
        group = next(iter(groups))
        wrong = with_group(groups, dataclasses.replace(group, slices=group.slices[1:]))
        left = sound(model, wrong)
        assert {g.name for g in left} == {g.name for g in groups} - {group.name}
        item = left.frozen[-1]
        assert (item.name, item.operator) == (group.name, "permutation law")
        assert "changes the outputs" in item.reason
        assert sound(model, groups) is groups


class TestMaskLaw:
    @pytest.mark.parametrize("name", MASKED)
    def test_a_wrong_removal_is_caught(self, name, monkeypatch):
        """A removal that takes the neighbours of the zeroed units is another model."""
        groups, model = groups_of(name), BY_NAME[name].model()
        keep = {
            group.name: shifted_half(group)
            for group in groups
            if group.mask_equivalent and group.units_per_block > 1
        }
        assert keep
        room = sys.modules["prunekit.surgery.laws"]
        right = room.reduced_graph
        assert check_mask(model, groups, keep).passed

        def neighbours(model, keep, groups):
            return right(model, {name: np.roll(mask, 1) for name, mask in keep.items()}, groups)

        monkeypatch.setattr(room, "reduced_graph", neighbours)
        assert not check_mask(model, groups, keep).passed

    def test_groups_that_zeroing_does_not_remove_are_left_out_and_counted(self):
        name = "rms norm"
        model, groups = BY_NAME[name].model(), groups_of(name)
        plan = plan_of(groups)
        law = check_mask(model, groups, plan.keep_mask())
        assert law.passed
        assert law.groups == tuple(g.name for g in groups if g.mask_equivalent)
        assert "1 groups are not mask-equivalent" in law.note

    def test_a_group_wrongly_called_mask_equivalent_is_caught(self):
        name = "rms norm"
        model, groups = BY_NAME[name].model(), groups_of(name)
        hidden = next(group for group in groups if not group.mask_equivalent)
        wrong = with_group(groups, dataclasses.replace(hidden, mask_equivalent=True))
        assert not check_mask(model, wrong, plan_of(groups).keep_mask()).passed


def shifted_half(group: Group) -> np.ndarray:
    """Every other unit of every block, the first one kept."""
    size = group.units_per_block
    return np.tile(np.arange(size) < (size + 1) // 2, group.blocks)


class TestFormLaw:
    @pytest.mark.parametrize("name", ["basic blocks", "padded shortcut", "buffers", "tied weights"])
    def test_one_wrong_number_is_caught(self, name):
        model, groups = BY_NAME[name].model(), groups_of(name)
        plan = plan_of(groups)
        small = remove(model, plan, groups).model
        assert verify(model, small, plan, groups).passed
        with torch.no_grad():
            next(small.parameters()).view(-1)[0] += 0.1
        proof = verify(model, small, plan, groups)
        assert [law.passed for law in proof.laws] == [True, True, False, True]
        assert "form law: BROKEN" in str(proof)

    def test_a_dead_activation_does_not_hide_a_wrong_class(self):
        """Its numbers cut out other channels than the graph, which no output of the example shows."""
        model = Cutting()
        groups = find_groups(trace(model, torch.randn(2, 3, 4, 4)))
        removal = remove(model, plan_of(groups), groups)
        assert removal.form == "graph module"

    def test_the_removal_of_another_plan_is_caught(self):
        model, groups = BY_NAME["perceptron"].model(), groups_of("perceptron")
        small = remove(model, plan_of(groups, seed=3), groups).model
        proof = verify(model, small, plan_of(groups, seed=4), groups)
        assert not proof.passed

    def test_a_model_that_does_not_run_is_broken_with_that_note(self):
        model, groups = BY_NAME["perceptron"].model(), groups_of("perceptron")
        plan = plan_of(groups)
        small = remove(model, plan, groups).model
        small[2] = nn.Linear(3, 3)
        proof = verify(model, small, plan, groups)
        assert not proof.passed
        assert "does not run: RuntimeError" in proof.laws[2].note


class Cutting(nn.Module):
    """Reads channels 1 to 4, and is silent on the example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        nn.init.constant_(self.second.bias, -100.0)

    def forward(self, x):
        return self.head(torch.relu(self.second(self.first(x)[:, 1:5])))


def test_verifying_with_a_plan_for_another_model_is_an_error():
    groups = groups_of("perceptron")
    model = BY_NAME["perceptron"].model()
    with pytest.raises(PlanError, match="fingerprint"):
        verify(model, model, plan_of(groups_of("rms norm")), groups)


def test_outputs_that_are_not_finite_prove_nothing():
    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))) / 0.0

    model = Infinite()
    groups = find_groups(trace(model, torch.randn(2, 3)))
    with pytest.raises(ProofError, match="Infinite on the example inputs are not finite") as caught:
        check_permutation(model, groups)
    assert "NaN" in caught.value.remedy


def test_proving_leaves_the_model_alone():
    for name in ("dropout", "training mode", "padded shortcut"):
        model, groups = BY_NAME[name].model(), groups_of(name)
        plan = plan_of(groups)
        small = remove(model, plan, groups).model
        before = [copy.deepcopy(part.state_dict()) for part in (model, small)]
        modes = [[module.training for module in part.modules()] for part in (model, small)]
        torch.manual_seed(11)
        state = torch.get_rng_state()
        verify(model, small, plan, groups)
        assert torch.equal(torch.get_rng_state(), state)
        for part, tensors, mode in zip((model, small), before, modes, strict=True):
            assert [module.training for module in part.modules()] == mode
            assert all(torch.equal(value, tensors[key]) for key, value in part.state_dict().items())


def test_the_same_seed_gives_the_same_proof():
    model, groups = BY_NAME["attention"].model(), groups_of("attention")
    plan = plan_of(groups)
    small = remove(model, plan, groups).model
    assert verify(model, small, plan, groups, seed=4) == verify(model, small, plan, groups, seed=4)
