"""Reconstruction after units were removed: its laws over every toy net, and least squares by hand on some."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.zoo import oracles
from tests.zoo.toys import BY_NAME, CASES, depth_of, groups_of
from torch import nn

from prunekit.errors import CalibrationError, PlanError, SelectionError, ShapeError
from prunekit.graph import find_groups, trace
from prunekit.plan import Goal, allocate
from prunekit.reconstruction import reconstruct
from prunekit.surgery import prune, remove
from prunekit.types import WIDTHS
from prunekit.workload import Batch

pytestmark = pytest.mark.filterwarnings("ignore:dropout2d")
PRUNABLE = [case for case in CASES if len(groups_of(case.name))]


def plan_of(groups, sparsity=0.5, seed=1):
    draw = np.random.default_rng(seed)
    scores = {group.name: draw.random(group.size).astype(np.float32) for group in groups}
    return allocate(groups, scores, Goal("sparsity", remove=sparsity), criterion="random")


def batches(*inputs):
    return [Batch(args=args, kwargs=kwargs) for args, kwargs in inputs]


def in_double(name):
    """The toy in float64, its groups, and its inputs."""
    case = BY_NAME[name]
    model, inputs = case.model().double(), oracles.in_double(case.inputs())
    return model, find_groups(trace(model, *inputs)).select(granularity=WIDTHS), inputs


def state(model):
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


@pytest.mark.parametrize("case", PRUNABLE, ids=lambda case: case.name)
def test_only_consumers_change_and_none_gets_worse(case):
    groups, model = groups_of(case.name), case.model()
    plan = plan_of(groups)
    removal = remove(model, plan, groups)
    dense, small = state(model), state(removal.model)
    calibration = batches(case.inputs(), oracles.more(case.inputs()))
    consumers = {
        part.tensor
        for group in groups
        for part in group.slices
        if part.role == "consumer" and group.name in plan.keep
    }
    for sequential in (True, False):
        found = reconstruct(model, removal, plan, groups, calibration, sequential=sequential)
        updated = {layer.name for layer in found.layers}
        alone = {item.tensor for item in found.left_alone}
        assert updated <= consumers
        assert not updated & alone
        assert consumers & set(small) <= updated | alone
        assert all(layer.after <= layer.before for layer in found.layers)
        after = state(found.model)
        biases = {name.removesuffix("weight") + "bias" for name in updated}
        biases |= {name.replace("weight", "bias") for name in updated}
        biases |= {name for name in small if small[name].ndim == 1 and name not in after}
        biases |= {name for name in small if name.endswith("running_mean")}
        changed = {name for name in small if not torch.equal(small[name], after[name])}
        loose = {name for name in changed - updated if after[name].ndim > 1}
        assert not loose
        assert len(changed - updated) <= sum(layer.bias for layer in found.layers)
        assert (changed - updated <= biases) or case.name in ("unwrapped parameters",)
    for before, now in ((dense, state(model)), (small, state(removal.model))):
        assert all(torch.equal(before[name], now[name]) for name in before)


PLAIN = ("perceptron", "basic blocks", "bottlenecks", "inverted residual", "u-net")
"""Toys of modules whose units may be chosen freely, so that what is kept can be read off the plan."""


def seen(model, inputs, names):
    """What each module reads and gives, over all batches."""
    found = {name: ([], []) for name in names}
    hooks = []
    for name in names:

        def hook(module, args, output, name=name):
            found[name][0].append(args[0].detach())
            found[name][1].append(output.detach())

        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    for args, kwargs in inputs:
        model.eval()(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return {name: (torch.cat(read), torch.cat(given)) for name, (read, given) in found.items()}


def kept_outputs(groups, plan, name):
    keep, masks = None, plan.keep_mask()
    for group in groups:
        for part in group.slices:
            if part.tensor == f"{name}.weight" and part.dim == 0 and group.name in masks:
                assert part.block_dim is None
                keep = masks[group.name][part.units]
    return slice(None) if keep is None else torch.from_numpy(keep)


def as_rows(module, read, given):
    """Rows of inputs and outputs; of a convolution by torch's own unfold."""
    if isinstance(module, nn.Linear):
        return read.flatten(0, -2), given.flatten(0, -2)
    assert module.groups == 1
    rows = F.unfold(read, module.kernel_size, module.dilation, module.padding, module.stride)
    return rows.mT.flatten(0, 1), given.flatten(2).mT.flatten(0, 1)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_the_update_is_numpys_least_squares(name, sequential):
    """Hooks on the two models see what the layers read and give; NumPy solves for each."""
    model, groups, example = in_double(name)
    plan = plan_of(groups)
    removal = remove(model, plan, groups)
    assert removal.form == "own class"
    inputs = [example, oracles.more(example)]
    found = reconstruct(model, removal, plan, groups, batches(*inputs), sequential=sequential, damping=1e-3)
    assert found.layers
    names = [layer.name.removesuffix(".weight") for layer in found.layers]
    dense, result = seen(model, inputs, names), seen(found.model, inputs, names)
    for layer, path in zip(found.layers, names, strict=True):
        module, start = found.model.get_submodule(path), removal.model.get_submodule(path)
        wanted = dense[path][1][:, kept_outputs(groups, plan, path)]
        read = result[path][0]
        if not sequential:
            lost = model.get_submodule(path)
            read = dense[path][0][:, kept_inputs(groups, plan, path, lost)]
        x, y = (rows.numpy() for rows in as_rows(module, read, wanted))
        w = start.weight.detach().flatten(1).numpy()
        if start.bias is not None:
            y = y - start.bias.detach().numpy()
        squares = as_rows(module, read, wanted)[1].square().sum().item()
        centre = (lambda m: m - m.mean(0)) if layer.bias else (lambda m: m)
        cx, residual = centre(x), centre(y - x @ w.T)
        cx = cx * (np.square(cx).sum(0) > 1e-12 * np.square(x).sum(0))  # The rest is rounding.
        ridge = layer.damping * (np.square(cx).sum(0).mean() or 1.0)
        change = np.linalg.solve(cx.T @ cx + ridge * np.eye(cx.shape[1]), cx.T @ residual).T
        np.testing.assert_allclose(module.weight.detach().flatten(1), w + change, atol=1e-6)
        shift = (y - x @ (w + change).T).mean(0)
        if start.bias is not None:
            np.testing.assert_allclose(module.bias.detach() - start.bias.detach(), shift, atol=1e-6)
        elif layer.bias:
            now, before = dict(found.model.named_buffers()), dict(removal.model.named_buffers())
            means = [before[name] - now[name] for name in now if name.endswith("running_mean")]
            shifts = [mean.numpy() for mean in means if len(mean) == len(shift)]
            assert any(np.allclose(mean, shift, atol=1e-6) for mean in shifts)
        assert layer.before == pytest.approx(np.square(y - x @ w.T).sum() / squares, rel=1e-6)
        left = centre(y - x @ (w + change).T)
        assert layer.after == pytest.approx(np.square(left).sum() / squares, rel=1e-5, abs=1e-12)
        assert layer.rows == len(x)


def kept_inputs(groups, plan, name, module):
    keep, masks = np.ones(module.weight.shape[1], bool), plan.keep_mask()
    for group in groups:
        for part in group.slices:
            if part.tensor == f"{name}.weight" and part.dim == 1 and group.name in masks:
                keep &= np.where(part.units >= 0, masks[group.name][part.units], True)
    return torch.from_numpy(keep)


class Doubled(nn.Module):
    """The second half of the units of both layers are combinations of the first half."""

    def __init__(self, convolutional):
        super().__init__()
        layer = (lambda *sizes: nn.Conv2d(*sizes, 3, padding=1)) if convolutional else nn.Linear
        self.first, self.second, self.third = layer(3, 8), layer(8, 8), layer(8, 2)
        mixing = torch.tensor([[1.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0.3]])
        with torch.no_grad():
            for made in (self.first, self.second):
                flat = made.weight.flatten(1)
                flat[4:] = mixing @ flat[:4]
                made.bias[4:] = mixing @ made.bias[:4]

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("convolutional", [True, False])
def test_a_net_whose_removed_units_follow_from_the_kept_ones_is_restored(convolutional, sequential):
    torch.manual_seed(0)
    model = Doubled(convolutional).double()
    x = torch.randn(64, 3, 6, 6).double() if convolutional else torch.randn(64, 3).double()
    groups = find_groups(trace(model, (x[:2],)))
    scores = {group.name: np.arange(group.size, 0, -1, dtype=np.float32) for group in groups}
    plan = allocate(groups, scores, Goal("sparsity", remove=0.5), criterion="first")
    assert all(units == (0, 1, 2, 3) for units in plan.keep.values())
    removal = remove(model, plan, groups)
    found = reconstruct(model, removal, plan, groups, batches(((x,), {})), sequential=sequential, damping=0.0)
    other = torch.randn_like(x[:5])
    assert (removal.model(other) - model(other)).abs().max() > 0.01
    assert (found.model(other) - model(other)).abs().max() < 1e-6
    assert len(found.layers) == 2
    assert not found.left_alone


@pytest.mark.parametrize("name", ["bottlenecks", "inverted residual", "fused attention, heads first"])
def test_any_split_into_batches_gives_the_same(name):
    """In float64, up to the order of its sums."""
    model, groups, (example, _) = in_double(name)
    plan = plan_of(groups)
    removal = remove(model, plan, groups)
    torch.manual_seed(3)
    args = [tuple(torch.randn_like(leaf) for leaf in example) for _ in range(4)]
    joined = tuple(torch.cat(leaves) for leaves in zip(*args, strict=True))
    one, several = (
        reconstruct(model, removal, plan, groups, batches(*((part, {}) for part in given)))
        for given in ([joined], args)
    )
    for left, right in zip(one.model.parameters(), several.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


DEEP = [case for case in CASES if any(group.size > 1 for group in depth_of(case.name))]


@pytest.mark.parametrize("case", DEEP, ids=lambda case: case.name)
def test_layers_that_went_whole_move_names(case):
    model = case.model()
    groups = find_groups(trace(model, *case.inputs()))
    deep = {group.name: group.size for group in groups if group.is_depth and group.size > 1}
    keep = {name: (size - 1,) for name, size in deep.items()}
    plan = plan_of(groups.freeze({group.name: "" for group in groups if group.is_depth}, operator="test"))
    plan = dataclasses.replace(plan, keep=plan.keep | keep, sizes=plan.sizes | deep)
    removal = remove(model, plan, groups)
    found = reconstruct(model, removal, plan, groups, batches(case.inputs()))
    names = dict(found.model.named_parameters())
    assert all(layer.name in names and layer.after <= layer.before for layer in found.layers)
    assert keep.keys() <= {item.tensor for item in found.left_alone}


@torch.no_grad()
@pytest.mark.parametrize("rows", [16, 64, 256])
def test_few_rows_do_not_make_other_data_worse(rows):
    """On noise, where least squares fits rows that are as many as the inputs and fails on others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    x, other = torch.randn(rows, 64), torch.randn(500, 64)
    groups = find_groups(trace(model, (x[:2],)))
    plan = plan_of(groups)
    removal = remove(model, plan, groups)
    found = reconstruct(model, removal, plan, groups, batches(((x,), {})), damping=0.01)
    before, after = ((small(other) - model(other)).square().sum() for small in (removal.model, found.model))
    assert after < before
    for layer in found.layers:
        assert (layer.rows, layer.inputs) == (rows, 64)
        assert layer.damping == pytest.approx(0.01 * 10 * 64 / rows)
        assert not layer.dampened_more
        assert (f"only {rows} rows for 64 inputs" in str(layer)) == (rows < 64)


def test_singular_moments_are_said():
    case, groups = BY_NAME["perceptron"], groups_of("perceptron")
    plan, model = plan_of(groups), case.model()
    one = tuple(leaf[:2] * 0 + 1 for leaf in case.inputs()[0])
    found = reconstruct(model, remove(model, plan, groups), plan, groups, batches((one, {})), damping=0.0)
    assert any(layer.dampened_more and layer.damping > 0 for layer in found.layers)
    assert "singular" in str(found)


class Failing(nn.Module):
    """Its middle layer gives infinity for some inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.log(self.middle(torch.relu(self.first(x)))))


def test_nan_names_the_layer():
    torch.manual_seed(0)
    model, x = Failing(), torch.randn(4, 3)
    groups = find_groups(trace(model, (x,)))
    plan = plan_of(groups)
    with pytest.raises(CalibrationError, match=r"last\.weight"):
        reconstruct(model, remove(model, plan, groups), plan, groups, batches(((x,), {})))


@pytest.fixture
def simple():
    case, groups = BY_NAME["perceptron"], groups_of("perceptron")
    plan, model = plan_of(groups), case.model()
    return model, remove(model, plan, groups), plan, groups, batches(case.inputs())


def test_no_calibration_data_is_refused_before_any_work(simple):
    model, removal, plan, groups, given = simple
    with pytest.raises(CalibrationError, match="no calibration batches"):
        reconstruct(model, removal, plan, groups, [])
    with pytest.raises(CalibrationError, match="are a Tensor"):
        reconstruct(model, removal, plan, groups, given[0].args[0])
    with pytest.raises(CalibrationError, match="batch 1"):
        reconstruct(model, removal, plan, groups, [given[0], given[0].args[0]])
    with pytest.raises(CalibrationError, match="traced with"):
        reconstruct(model, removal, plan, groups, batches(((given[0].args[0][:, :-1],), {})))


def test_what_does_not_belong_together_is_refused(simple):
    model, removal, plan, groups, given = simple
    with pytest.raises(ShapeError, match="remove"):
        reconstruct(model, model, plan, groups, given)
    with pytest.raises(PlanError):
        reconstruct(model, removal, plan, groups_of("basic blocks"), given)
    with pytest.raises(SelectionError, match="dampening"):
        reconstruct(model, removal, plan, groups, given, damping=-1.0)


def test_what_one_call_pruned_is_reconstructed():
    case = BY_NAME["basic blocks"]
    model = case.model()
    pruned = prune(model, *case.inputs(), criterion="random")
    found = reconstruct(model, pruned, pruned.plan, pruned.groups, batches(case.inputs()))
    assert found.layers
    assert sum(layer.after for layer in found.layers) < sum(layer.before for layer in found.layers)


def test_trained_weights_are_what_is_updated(simple):
    """The update starts at the weights that are given, not at the dense model's."""
    model, removal, plan, groups, given = simple
    small = copy.deepcopy(removal.model)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.5)
    found = reconstruct(model, small, plan, groups, given, damping=1e12)
    for left, right in zip(found.model.parameters(), small.parameters(), strict=True):
        if left.ndim > 1:
            torch.testing.assert_close(left, right)
