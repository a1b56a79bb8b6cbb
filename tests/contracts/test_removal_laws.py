"""The laws of removal, over every toy net, several sparsities and random choices of units.

The oracles are those of ``tests.zoo.oracles``, which know nothing of surgery: units are zeroed, permuted and
cut out with NumPy, from the slices that the groups state.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from tests.zoo import oracles
from tests.zoo.case import Case
from tests.zoo.toys import BY_NAME, CASES, groups_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.recover import follow
from prunekit.surgery import Removal, remove
from prunekit.types import WIDTHS

TOLERANCE = 1e-6
LEVELS = ((0.25, 0), (0.5, 1), (0.9, 3))
"""Sparsity, and the seed of the scores."""

pytestmark = pytest.mark.filterwarnings("ignore:dropout2d")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@cache
def make_plan(name: str, sparsity: float, seed: int) -> PruningPlan:
    """Random units of every group."""
    groups = groups_of(name)
    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    goal = Goal("sparsity", remove=sparsity if len(groups) else 0.0)
    return allocate(groups, scores, goal, criterion="random")


@cache
def make_removal(case: Case, sparsity: float, seed: int) -> Removal:
    return remove(case.model(), make_plan(case.name, sparsity, seed), groups_of(case.name))


def restricted(plan: PruningPlan, names: set[str]) -> PruningPlan:
    return dataclasses.replace(plan, keep={name: units for name, units in plan.keep.items() if name in names})


def test_removed_equals_masked(case):
    groups = groups_of(case.name)
    equivalent = {group.name for group in groups if group.mask_equivalent}
    model = case.model()
    for level in LEVELS[1:]:
        plan = make_plan(case.name, *level)
        everything = {group.name for group in groups} <= equivalent
        plan = plan if everything else restricted(plan, equivalent)
        removal = make_removal(case, *level) if everything else remove(model, plan, groups)
        removed = copy.deepcopy(removal.model).double()
        masked = oracles.zeroed(model, groups, plan.keep_mask()).double()
        for inputs in (case.inputs(), oracles.more(case.inputs())):
            inputs = oracles.in_double(inputs)
            assert oracles.error(oracles.run(masked, inputs), oracles.run(removed, inputs)) < TOLERANCE


def test_an_optimizer_follows(case):
    """Its momentum is cut out like the parameters, and it holds the smaller model's parameters only."""
    model, groups = case.model(), groups_of(case.name)
    for level in LEVELS:
        plan, removal = make_plan(case.name, *level), make_removal(case, *level)
        dense = dict(model.named_parameters())
        optimizer = torch.optim.SGD(dense.values(), lr=0.1, momentum=0.9)
        momentum = {name: torch.randn_like(each) for name, each in dense.items()}
        for name, each in dense.items():
            optimizer.state[each]["momentum_buffer"] = momentum[name]
        report = follow(optimizer, model, removal, plan, groups)
        small = dict(removal.model.named_parameters())
        assert (set(report.gone), report.reset) == (dense.keys() - small.keys(), {})
        assert {id(each) for each in optimizer.param_groups[0]["params"]} == set(map(id, small.values()))
        for name in small.keys() - set(removal.scaled):
            expected = oracles.cut_out(groups, plan.keep_mask(), name, momentum[name])
            assert torch.equal(optimizer.state[small[name]]["momentum_buffer"], expected)


LONGER = (
    "basic blocks",
    "c2f",
    "embeddings added up",
    "fused attention, heads first",
    "gru with a state handed over",
    "linear attention",
    "lstm",
    "multi-query attention",
    "rotary code by complex numbers",
    "rotary code by halves",
    "state space",
    "tied weights",
    "u-net",
)
"""Toys that take longer sequences or larger images than their example."""


@pytest.mark.parametrize("name", LONGER)
def test_removed_equals_masked_at_another_length(name):
    case, groups = BY_NAME[name], groups_of(name)
    equivalent = {group.name for group in groups if group.mask_equivalent}
    plan = restricted(make_plan(name, 0.5, 1), equivalent)
    removal = remove(case.model(), plan, groups)
    assert removal.form == "own class", removal.reason
    masked = oracles.zeroed(case.model(), groups, plan.keep_mask()).double()
    inputs = oracles.in_double(oracles.longer(case.inputs()))
    expected = oracles.run(masked, inputs)
    assert [t.shape for t in expected] != [t.shape for t in oracles.run(case.model(), case.inputs())] or (
        name == "basic blocks"  # which takes the mean over its image
    )
    assert oracles.error(expected, oracles.run(removal.model.double(), inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ["perceptron", "basic blocks", "bottlenecks", "inverted residual", "u-net"])
def test_removed_equals_silenced(name):
    """Here the oracle is the dense model itself, with hooks that put zeros where removed units speak."""
    case, groups = BY_NAME[name], groups_of(name)
    plan = make_plan(name, 0.5, 1)
    removed = remove(case.model(), plan, groups).model.double()
    model = case.model().double()
    for group_name, mask in plan.keep_mask().items():
        for part in groups[group_name].slices:
            owner, _, kind = part.tensor.rpartition(".")
            transposed = isinstance(model.get_submodule(owner), nn.ConvTranspose2d)
            if kind == "weight" and part.dim == (1 if transposed else 0) and part.role != "consumer":
                kept = torch.from_numpy(mask)[part.units]
                model.get_submodule(owner).register_forward_hook(_silence(kept))
    inputs = oracles.in_double(oracles.more(case.inputs()))
    assert oracles.error(oracles.run(model, inputs), oracles.run(removed, inputs)) < TOLERANCE


def _silence(kept: Tensor):
    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output * kept.to(output).reshape(-1, *[1] * (output.ndim - 2))

    return hook


def test_units_may_change_places(case):
    groups = groups_of(case.name)
    model = case.model().double()
    for inputs in (case.inputs(), oracles.more(case.inputs())):
        inputs = oracles.in_double(inputs)
        expected = oracles.run(model, inputs)
        for seed, group in enumerate(groups):
            found = oracles.run(oracles.permuted(model, [group], seed), inputs)
            assert oracles.error(expected, found) < TOLERANCE, group.name
        found = oracles.run(oracles.permuted(model, groups, 99), inputs)
        assert oracles.error(expected, found) < TOLERANCE


def test_what_is_left_is_what_was_there(case):
    groups = groups_of(case.name)
    before = oracles.tensors_of(case.model())
    for level in LEVELS:
        keep = make_plan(case.name, *level).keep_mask()
        removal = make_removal(case, *level)
        after = oracles.tensors_of(removal.model)
        # (new / old) ** (1 / 4), for queries and keys of a class that divides by the root of its own width
        factors = [mask.mean() ** 0.25 for mask in keep.values()] if "scaled" in removal.reason else []
        read = set(groups.graph.tensors.values()) & set(before)
        assert read <= set(after)
        for name in read:
            canonical = groups.graph.tied.get(name, name)
            expected = oracles.cut_out(groups, keep, canonical, before[name])
            scaled = [torch.allclose(after[name], expected * factor, atol=0) for factor in factors]
            assert torch.equal(after[name], expected) or any(scaled), name


def test_exactly_the_planned_number_of_units_goes(case):
    """Of every block the nearest count, a half kept, at least what operators need; a block inside a unit that
    goes, goes."""
    groups = groups_of(case.name)
    for sparsity, seed in LEVELS:
        keep = make_plan(case.name, sparsity, seed).keep_mask()
        for group in groups:
            mask = keep.get(group.name, np.ones(group.size, dtype=bool))
            nearest = max(group.least, math.floor(group.units_per_block * (1 - sparsity) + 0.5))
            assert set(mask.reshape(group.blocks, -1).sum(axis=1)) - {0} == {nearest}, group.name


def test_own_class_is_kept_where_it_can_be(case):
    groups = groups_of(case.name).select(granularity=WIDTHS)
    scores = {group.name: np.arange(group.size, dtype=np.float32) % 7 for group in groups}
    model = case.model()
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5 if len(groups) else 0.0))
    removal = remove(model, plan, groups)
    assert (removal.form == "own class") == case.own_class, removal.reason
    assert (type(removal.model) is type(model)) == case.own_class
    assert removal.form in ("own class", "graph module")


def test_removed_model_trains_one_step(case):
    original = {name: value.requires_grad for name, value in case.model().named_parameters()}
    for level in LEVELS:
        model = copy.deepcopy(make_removal(case, *level).model).train()
        assert all(module.training for module in model.modules())
        args, kwargs = oracles.more(case.inputs(), count=4)
        leaves = pytree.tree_leaves(model(*args, **kwargs))
        loss = sum(
            leaf.square().sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == original[name], name
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert reached == _reached_in_original(case)


@cache
def _reached_in_original(case: Case) -> set[str]:
    model = case.model().train()
    args, kwargs = oracles.more(case.inputs(), count=4)
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    sum(leaf.sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()).backward()  # pyright: ignore
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_state_dict_round_trip(case):
    inputs = case.inputs()
    for level in LEVELS:
        model = make_removal(case, *level).model
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in twin.state_dict().values():
                tensor.zero_()
        twin.load_state_dict(model.state_dict(), strict=True)
        assert oracles.error(oracles.run(model, inputs), oracles.run(twin, inputs)) == 0
        assert set(model.state_dict()) >= set(dict(model.named_parameters()))


def test_outputs_look_as_before(case):
    model = case.model().eval()
    for level in LEVELS:
        removed = make_removal(case, *level).model.eval()
        for args, kwargs in (case.inputs(), oracles.more(case.inputs(), 5)):
            with torch.no_grad():
                before, structure = pytree.tree_flatten(model(*args, **kwargs))
                after, found = pytree.tree_flatten(removed(*args, **kwargs))
            assert found == structure
            assert [_look(leaf) for leaf in after] == [_look(leaf) for leaf in before]


def _look(leaf: object) -> object:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def test_removing_nothing_changes_nothing(case):
    model = case.model()
    removal = remove(model, make_plan(case.name, 0.0, 0), groups_of(case.name))
    inputs = case.inputs()
    assert removal.form == "own class"
    assert oracles.error(oracles.run(model, inputs), oracles.run(removal.model, inputs)) == 0
    before, after = model.state_dict(), removal.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_original_is_left_alone(case):
    plan, groups = make_plan(case.name, 0.5, 1), groups_of(case.name)
    model = case.model()
    before = copy.deepcopy(oracles.tensors_of(model))
    modes = [module.training for module in model.modules()]
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    removed = remove(model, plan, groups).model
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert [module.training for module in model.modules()] == modes
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    after = oracles.tensors_of(model)
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.requires_grad == before[name].requires_grad
        assert getattr(tensor, "grad", None) is None
    theirs = {tensor.untyped_storage().data_ptr() for tensor in after.values()}
    ours = {tensor.untyped_storage().data_ptr() for tensor in oracles.tensors_of(removed).values()}
    assert theirs.isdisjoint(ours)
