"""The laws of leaving layers and branches out, on toy nets and on architectures of transformers.

The oracle is the dense class itself: a forward hook throws away what a layer computed and returns what it was
given, or returns zeros for what is added.
"""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from tests.zoo import oracles
from tests.zoo.architectures.table import BY_NAME as ARCHITECTURES
from tests.zoo.toys import BY_NAME, CASES, depth_of, everything_in
from torch import nn
from torch.utils import _pytree as pytree

import prunekit as pk
from prunekit.errors import GoalError, PlanError
from prunekit.graph import Groups, find_groups, trace
from prunekit.plan import Goal, PruningPlan, allocate
from prunekit.surgery import mask, remove, verify
from prunekit.types import Granularity

NAMES = [case.name for case in CASES if len(depth_of(case.name))]
TOLERANCE = 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:dropout2d")


def plans(groups: Groups) -> list[PruningPlan]:
    """Every choice that leaves something out."""
    sizes = [group.size for group in groups]
    choices = product(*(product((False, True), repeat=size) for size in sizes))
    return [plan_of(groups, choice) for choice in choices if not all(map(all, choice))]


def plan_of(groups: Groups, choice) -> PruningPlan:
    masks = {group.name: np.array(units) for group, units in zip(groups, choice, strict=True)}
    masks = {name: units for name, units in masks.items() if not units.all()}
    return PruningPlan(
        keep={name: tuple(np.flatnonzero(units).tolist()) for name, units in masks.items()},
        sizes={group.name: group.size for group in groups},
        fingerprint=groups.fingerprint,
        criterion="by hand",
        goal=Goal("sparsity", remove=0.5),
        scope="uniform",
        before=groups.cost(),
        after=groups.cost(masks),
    )


def around(model: nn.Module, plan: PruningPlan, groups: Groups) -> nn.Module:
    """The dense class with hooks in the place of every layer and branch that ``plan`` leaves out."""
    for name in plan.keep:
        for unit in plan.removed(name):
            module = model.get_submodule(groups.bypasses[name][unit].path)
            if groups[name].granularity is Granularity.LAYER:
                module.register_forward_hook(lambda module, given, output: given[0])
            else:
                module.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_left_out_equals_computed_and_thrown_away(name):
    groups, case = depth_of(name), BY_NAME[name]
    for plan in plans(groups):
        removal = remove(case.model(), plan, groups)
        assert verify(case.model(), removal, plan, groups).passed
        whole = all(groups[name].granularity is Granularity.LAYER for name in plan.keep)
        assert removal.form == ("own class" if whole else "graph module")
        if name == "experts in a loop":
            continue  # Its branch is called after one of the modules that are added up.
        modules = dict(case.model().named_modules())
        if not all(part.path in modules for part in units(plan, groups)):
            continue  # A weight that lies in no module of its own takes no hook; verify has its own oracle.
        expected = around(case.model().double(), plan, groups)
        for inputs in (case.inputs(), oracles.more(case.inputs())):
            inputs = oracles.in_double(inputs)
            found = oracles.run(copy.deepcopy(removal.model).double(), inputs)
            assert oracles.error(oracles.run(expected, inputs), found) < TOLERANCE


def units(plan: PruningPlan, groups: Groups):
    return [groups.bypasses[name][unit] for name in plan.keep for unit in plan.removed(name)]


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_that_of_the_model_that_is_left(name):
    """Oracle: the parameters of the smaller model, and what is found in it when it is traced again."""
    groups, case = depth_of(name), BY_NAME[name]
    for plan in plans(groups):
        small = remove(case.model(), plan, groups).model
        assert plan.after.params == sum(tensor.numel() for tensor in small.parameters())
        again = find_groups(trace(small, *case.inputs()))
        assert again.cost().macs == plan.after.macs


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_trains_and_is_saved(name):
    groups, case = depth_of(name), BY_NAME[name]
    plan = plans(groups)[0]  # Nothing of any group stays.
    removal = remove(case.model(), plan, groups)
    small = removal.model.train()
    args, kwargs = case.inputs()
    leaves = [leaf for leaf in pytree.tree_leaves(small(*args, **kwargs)) if leaf.is_floating_point()]
    sum(leaf.square().sum() for leaf in leaves).backward()
    left = {removal.moved.get(name, name): tensor for name, tensor in small.named_parameters()}
    never_read = groups.left_unread({})
    assert [n for n, tensor in left.items() if tensor.grad is None and n not in never_read] == []
    state = small.state_dict()
    kept = {removal.moved.get(key, key) for key in state}
    assert kept <= set(case.model().state_dict())
    for key, tensor in state.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(tensor, case.model().state_dict()[removal.moved.get(key, key)])


def test_a_plan_may_take_layers_and_widths():
    """What lies in a layer that goes is recorded as gone; the rest loses the same share."""
    name = "pre-activation"
    case, groups = BY_NAME[name], everything_in(name).select(granularity=("layer", "channel"))
    scores = {group.name: np.arange(group.size, dtype=np.float32) + 1 for group in groups}
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5))
    assert plan.widths == {
        "stem:channel": (8, 4),
        "blocks.0.conv1:channel": (6, 0),
        "blocks.1.conv1:channel": (6, 3),
        "blocks:layer": (2, 1),
    }
    removal = remove(case.model(), plan, groups)
    assert removal.form == "own class"
    assert len(removal.model.blocks) == 1
    assert removal.model.blocks[0].conv1.weight.shape == (3, 4, 3, 3)
    assert verify(case.model(), removal, plan, groups).passed
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert plan.after.params == sum(tensor.numel() for tensor in removal.model.parameters())


def test_layers_are_left_out_not_masked():
    groups = depth_of("pre-activation")
    with pytest.raises(PlanError, match="leaves out layers or branches of blocks:layer"):
        mask(BY_NAME["pre-activation"].model(), plans(groups)[0], groups)


def test_half_of_one_layer_is_refused():
    case = BY_NAME["basic blocks"]
    with pytest.raises(GoalError, match="removes nothing at all"):
        pk.prune(case.model(), *case.inputs(), granularity="layer")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(Residual() for _ in range(3))
        self.count = 3

    def forward(self, x):
        for place in range(self.count):
            x = self.body[place](x)
        return x


class Nested(nn.Module):
    """A list of layers inside another one, at a place that changes when those before it go."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.parts = nn.ModuleList([Residual(), Residual(), Stage()])

    def forward(self, x):
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return x


def test_lists_in_lists_that_move():
    torch.manual_seed(0)
    dense, x = Nested().double(), torch.randn(2, 4, dtype=torch.float64)
    groups = find_groups(trace(dense, x)).select(granularity="layer")
    assert {group.name: group.size for group in groups} == {"parts:layer": 2, "parts.2.body:layer": 3}
    for plan in plans(groups):
        removal = remove(dense, plan, groups)
        assert removal.form == "own class", removal.form_reason
        expected = around(copy.deepcopy(dense), plan, groups)
        assert (
            oracles.error(oracles.run(expected, ((x,), {})), oracles.run(removal.model, ((x,), {})))
            < TOLERANCE
        )
        stage = removal.model.parts[-1]
        assert stage.count == len(stage.body) == plan.widths["parts.2.body:layer"][1]


CLASSES = {
    "bert": {"num_hidden_layers": (2, 1)},
    "llama": {"num_hidden_layers": (2, 1)},
    "gpt2": {"n_layer": (2, 1)},
    "opt": {"num_hidden_layers": (2, 1)},
    "vit": {"num_hidden_layers": (2, 1)},
    "whisper": {"encoder_layers": (2, 1), "decoder_layers": (2, 1)},
    "swin": {"depths": ([2, 2], [1, 1]), "num_layers": (2, 2)},
    "mobilenet-v2": None,
}
"""Architectures that stay their own class with half of the layers of every stack, and what their settings
then say; None where no configuration can say it."""


ALIKE = {"bert", "opt", "vit"}
"""What happens to them happens to another of these."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in CLASSES]
)
def test_the_class_and_its_configuration_follow(name):
    row = ARCHITECTURES[name]
    dense = row.model()
    result = pk.prune(dense, kwargs=row.example(), granularity="layer", criterion="random")
    assert result.proof.passed
    assert result.form == "own class", result.form_reason
    changed = CLASSES[name]
    assert ("its configuration builds it again" in result.form_reason) == (changed is not None)
    for field, (before, after) in (changed or {}).items():
        assert getattr(dense.config, field) == before
        assert getattr(result.model.config, field) == after


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gemma2"))]
)
def test_generation_with_a_cache_is_generation_without(name):
    row = ARCHITECTURES[name]
    for seed in (0, 1):  # Either layer goes.
        result = pk.prune(
            row.model(), kwargs=row.example(), granularity="layer", criterion="random", seed=seed
        )
        assert result.form == "own class"
        prompt = row.example()["input_ids"]
        arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        with_cache = result.model.generate(prompt, use_cache=True, **arguments)
        assert torch.equal(with_cache, result.model.generate(prompt, use_cache=False, **arguments))
