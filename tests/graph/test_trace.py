"""Tracing leaves the model as it was, opens the batch, and says where it cannot follow."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from tests.zoo.case import Case
from tests.zoo.oracles import error, more, run, tensors_of
from tests.zoo.toys import CASES, groups_of
from torch import nn
from torch.utils import _pytree as pytree

from prunekit.errors import TraceError
from prunekit.graph import find_groups, trace


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def test_the_model_is_left_as_it_was(case):
    model = case.model()
    for position, module in enumerate(model.modules()):
        module.training = position % 3 == 0
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    attributes = [set(vars(module)) for module in model.modules()]
    args, kwargs = case.inputs()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trace(model, args, kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    after = tensors_of(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.grad is None for tensor in model.parameters())


def test_the_graph_computes_what_the_model_computes_at_any_batch_size(case):
    graph = groups_of(case.name).graph
    assert graph.batch_is_open
    model, runs = case.model().eval(), graph.program.module(check_guards=False)
    for inputs in (more(case.inputs(), 2), more(case.inputs(), 4)):
        expected = run(model, inputs)
        with torch.no_grad():
            leaves = pytree.tree_leaves(runs(*inputs[0], **inputs[1]))
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        assert error(expected, found) < 1e-5


def test_every_tensor_has_its_name(case):
    graph = groups_of(case.name).graph
    model = case.model()
    assert graph.trainable <= {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, canonical in graph.tied.items():
        assert tensors_of(model)[name] is tensors_of(model)[canonical]
    for name in set(graph.tensors.values()) & tensors_of(model).keys():
        assert torch.equal(graph.tensor(name), tensors_of(model)[name])


def test_a_batch_of_one_is_repeated_and_stays_open():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    graph = trace(model, torch.randn(1, 3, 4, 4))
    assert graph.batch_is_open
    assert graph.args[0].shape == (2, 3, 4, 4)
    assert [group.size for group in find_groups(graph)] == [4]


def test_one_tensor_may_come_without_its_tuple():
    model, x = nn.Linear(3, 4), torch.randn(2, 3)
    assert torch.equal(trace(model, x).args[0], trace(model, (x,)).args[0])


class FixedBatch(nn.Module):
    """Says how many examples there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).reshape(1, 8))


def test_a_batch_that_is_written_into_the_model_stays_closed():
    graph = trace(FixedBatch(), torch.randn(2, 3))
    assert not graph.batch_is_open
    assert [group.size for group in find_groups(graph)] == [4]


class Branching(nn.Module):
    """Looks at a value to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        x = self.layer(x)
        if x.sum() > 0:  # the line to blame
            x = -x
        return x


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))

    def forward(self, x):
        return self.inner(x)  # the line to blame


@pytest.mark.parametrize("kind", [Branching, Broken])
def test_an_untraceable_model_names_the_line_and_a_way_out(kind):
    model = kind().train()
    source, start = inspect.getsourcelines(kind.forward)
    line = start + next(number for number, text in enumerate(source) if "the line to blame" in text)
    with pytest.raises(TraceError) as caught:
        trace(model, torch.randn(2, 3))
    assert f"{Path(__file__).name}:{line}: " in caught.value.where
    assert kind.__name__ in caught.value.given
    assert "pk.prune(model.backbone" in caught.value.remedy
    assert caught.value.exit_code == 3
    assert all(module.training for module in model.modules())


def test_wrong_inputs_are_a_trace_error():
    with pytest.raises(TraceError, match="example inputs"):
        trace(nn.Linear(3, 4), torch.randn(2, 5))
    with pytest.raises(TraceError, match="example inputs"):
        trace(nn.Linear(3, 4))
