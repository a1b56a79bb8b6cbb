"""Going back to an early point: weights and buffers exactly, masks and cuts as they are, files that hold."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunekit as pk
from prunekit.errors import PlanError, StorageError, UsageError


class Tied(nn.Module):
    """A convolution with batch norm, and two linear layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.second(torch.relu(self.first(x)))


X = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def tied():
    torch.manual_seed(0)
    return Tied()


def train(model, steps, *companions):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
        for companion in companions:
            companion.step()


def plain_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("where", ["memory", "file"])
def test_weights_and_buffers_are_the_early_ones_and_zeros_stay(where, tmp_path):
    model = tied()
    path = tmp_path / "early.safetensors" if where == "file" else None
    keeper = pk.EarlyPointKeeper(model, steps=10, at=0.3, path=path)
    train(model, 3, keeper)
    early = plain_state(model)
    train(model, 7, keeper)
    assert keeper.point.progress == 0.3
    point = pk.load_early_point(path) if path else keeper.point
    masked = pk.mask_weights(model, sparsity=0.5)
    before = {id(parameter) for parameter in masked.model.parameters()}
    pk.rewind(masked.model, point)
    assert {id(parameter) for parameter in masked.model.parameters()} == before
    folded = pk.fold_masks(masked.model)
    for name, value in folded.state_dict().items():
        mask = masked.plan.masks.get("first.weight" if name == "second.weight" else name)
        keep = torch.from_numpy(mask.keep()) if mask else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value, torch.where(keep, early[name], torch.zeros_like(value))), name
    for weight in pk.find_weights(masked.model):
        stored = pk.importance.stored_parameter(masked.model, weight)
        assert torch.equal(stored, pk.importance.read_weight(masked.model, weight))
    pk.rewind(model, point)
    assert all(torch.equal(value, early[name]) for name, value in model.state_dict().items())
    assert model.first.weight is model.second.weight


def test_a_point_of_a_masked_model_fits_the_plain_one_and_the_other_way_round():
    masked = pk.mask_weights(tied(), sparsity=0.5).model
    plain = tied()
    pk.rewind(plain, pk.early_point(masked, 0.5))
    assert torch.equal(plain.eval()(X), masked.eval()(X))
    assert set(pk.early_point(plain, 0.5).tensors) == set(plain.state_dict())


def test_a_pruned_model_has_the_early_values_of_what_is_left():
    """Oracle: the early tensors indexed by hand with the units that the plan keeps, buffers too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4))
    train(model, 2)
    point, early = pk.early_point(model, 0.2), plain_state(model)
    train(model, 8)
    trained = plain_state(model)
    result = pk.prune(model, (X,), sparsity=0.5)
    small = pk.rewound_removal(model, point, result.plan, result.groups).model
    (keep,) = result.plan.keep.values()
    keep = torch.tensor(keep)
    wanted = {
        "0.weight": early["0.weight"][keep],
        "0.bias": early["0.bias"][keep],
        **{
            f"1.{name}": early[f"1.{name}"][keep]
            for name in ("weight", "bias", "running_mean", "running_var")
        },
        "1.num_batches_tracked": torch.tensor(2),
        "4.weight": early["4.weight"].reshape(4, 8, 9)[:, keep].reshape(4, -1),
        "4.bias": early["4.bias"],
    }
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in wanted.items()
    }
    assert all(torch.equal(small.state_dict()[name], value) for name, value in wanted.items())
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    with pytest.raises(PlanError, match="rewound_removal"):
        pk.rewind(small, point)


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("stopped", [0, 2, 3, 5])
def test_a_keeper_goes_on_where_another_was(where, stopped, tmp_path):
    """Stopped before, at and after the point; the state is what safetensors and JSON hold."""
    path = tmp_path / "early.safetensors" if where == "file" else None
    model = tied()
    keeper = pk.EarlyPointKeeper(model, steps=6, at=0.5, path=path)
    train(model, stopped, keeper)
    state = keeper.state_dict()
    tensors = state.pop("tensors")
    save_file(tensors, tmp_path / "state.safetensors")
    state = {**json.loads(json.dumps(state)), "tensors": load_file(tmp_path / "state.safetensors")}
    other = pk.EarlyPointKeeper(model, steps=6, at=0.5, path=path)
    other.load_state_dict(state)
    train(model, 6 - stopped, keeper, other)
    assert other.point.tensors.keys() == keeper.point.tensors.keys()
    assert all(torch.equal(other.point.tensors[name], value) for name, value in keeper.point.tensors.items())
    assert other.point.tensors["first.weight"] is other.point.tensors["second.weight"]
    with pytest.raises(UsageError, match="differs in at, steps"):
        pk.EarlyPointKeeper(model, steps=8, at=0.5).load_state_dict(keeper.state_dict())


def test_a_point_at_the_start_is_the_model_as_it_came():
    model = tied()
    early = plain_state(model)
    keeper = pk.EarlyPointKeeper(model, steps=6, at=0.0)
    train(model, 2, keeper)
    assert all(torch.equal(value, early[name]) for name, value in keeper.point.tensors.items())


def test_another_model_is_refused_and_left_as_it_is():
    point = pk.early_point(tied(), 0.1)
    other = tied()
    other.first = nn.Linear(6, 7)
    before = plain_state(other)
    with pytest.raises(PlanError, match=r"differs in first\.weight, first\.bias"):
        pk.rewind(other, point)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(PlanError, match="another model"):
        pk.rewind(nn.Linear(2, 2), point)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1.5}, {"at": 1.5}, {"at": None}], ids=str)
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError, match="rewinding"):
        pk.EarlyPointKeeper(nn.Linear(2, 2), **{"steps": 4, "at": 0.5} | wrong)


def test_files_that_are_damaged_missing_or_impossible_are_refused(tmp_path):
    path = tmp_path / "early.safetensors"
    with pytest.raises(StorageError, match="could not be read"):
        pk.load_early_point(path)
    with pytest.raises(StorageError, match="could not be written"):
        pk.save_early_point(pk.early_point(nn.Linear(2, 2), 0.1), tmp_path / "nowhere" / "early")
    pk.save_early_point(pk.early_point(tied(), 0.1), path)
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"x" * 200):
        path.write_bytes(content)
        with pytest.raises(PlanError, match="no early point"):
            pk.load_early_point(path)
    headers = [
        {},
        {"schema": "prunekit.mask_plan/1"},
        {"schema": "prunekit.early_point/1"},
        {"schema": "prunekit.early_point/1", "places": {"w": "v"}, "progress": 0.1},
        {"schema": "prunekit.early_point/1", "places": {"w": "w"}, "progress": "half"},
    ]
    for header in headers:
        save_file({"w": torch.zeros(2)}, path, metadata={"prunekit": json.dumps(header)})
        with pytest.raises(PlanError, match="no early point"):
            pk.load_early_point(path)
