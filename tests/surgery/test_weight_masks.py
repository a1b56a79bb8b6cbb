"""Masks on parameters: what is stored, that they survive everything training does, and that they fold."""

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import prunekit as pk
from prunekit.errors import PlanError
from prunekit.surgery import WeightMask


class Mixed(nn.Module):
    """Linear, convolution, a plain parameter, a list of parameters and a tie."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(16, 8))
        self.several = nn.ParameterList([torch.randn(8, 8), torch.randn(8, 8)])

    def forward(self, x):
        x = self.conv(x).flatten(1)
        x = torch.tanh(self.second(torch.tanh(self.first(x)))) @ self.scale
        return x @ self.several[0] @ self.several[1]


def mixed():
    torch.manual_seed(0)
    return Mixed()


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
MASKED = ["scale", "conv.weight", "first.weight", "several.0", "several.1"]


def masks_of(result):
    return {name: torch.from_numpy(mask.keep()) for name, mask in result.plan.masks.items()}


def read(model, name):
    holder = model.get_submodule(name.rpartition(".")[0])
    return getattr(holder, name.rpartition(".")[2])


def test_a_masked_model_computes_with_zeros_and_the_given_one_is_untouched():
    """Oracle: the model with its parameters multiplied by the masks."""
    model = mixed()
    before = copy.deepcopy(model.state_dict())
    result = pk.mask_weights(model, sparsity=0.5)
    assert sorted(result.plan.masks) == sorted(MASKED)
    by_hand = copy.deepcopy(model)
    for name, keep in masks_of(result).items():
        assert torch.equal(read(result.model, name), read(by_hand, name) * keep)
        by_hand.get_parameter(name).data *= keep
    assert torch.equal(result.model(X), by_hand(X))
    assert type(model.first) is nn.Linear
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, 0.01, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
@pytest.mark.parametrize("moments", ["before", "after"])
def test_masked_weights_stay_exactly_zero_in_training_and_the_others_move(optimizer, moments):
    """An optimizer made before goes on, and what its momentum still moves stays zero in the model."""
    model = mixed()
    steps = optimizer(model.parameters())
    if moments == "before":
        model(X).square().mean().backward()
        steps.step()
    result = pk.mask_weights(model, sparsity=0.6, in_place=True)
    assert result.model is model
    started = {name: read(model, name).detach().clone() for name in MASKED}
    for _ in range(5):
        steps.zero_grad()
        model(X).square().mean().backward()
        for chain in model.modules():
            if isinstance(chain, parametrize.ParametrizationList):
                assert bool((chain.original.grad[~chain[0].keep] == 0).all())
        steps.step()
    for name, keep in masks_of(result).items():
        value = read(model, name)
        assert bool((value[~keep] == 0).all())
        assert bool((value[keep] != started[name][keep]).any())
        if moments == "after":
            holder = model.get_submodule(name.rpartition(".")[0])
            stored = holder.parametrizations[name.rpartition(".")[2]].original
            assert bool((stored[~keep] == 0).all())
    pk.fold_masks(model, in_place=True)
    for name, keep in masks_of(result).items():
        assert bool((model.get_parameter(name)[~keep] == 0).all())
    assert {id(p) for p in model.parameters()} == {
        id(p) for group in steps.param_groups for p in group["params"]
    }


def test_folding_gives_the_plain_model_back():
    model = mixed()
    result = pk.mask_weights(model, sparsity=0.5)
    folded = pk.fold_masks(result.model)
    assert list(folded.state_dict()) == list(model.state_dict())
    assert [type(module) for module in folded.modules()] == [type(module) for module in model.modules()]
    assert [name for name, _ in folded.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert folded.first.weight is folded.second.weight
    assert torch.equal(folded(X), result.model(X))
    for name, keep in masks_of(result).items():
        value = folded.get_parameter(name)
        assert torch.equal(value, torch.where(keep, model.get_parameter(name), 0.0))
    assert torch.equal(result.model(X), folded(X)), "the masked model still has its masks"
    assert isinstance(result.model.first.parametrizations.weight[0], WeightMask)


def test_copies_do_not_share_what_is_masked():
    """torch gives a deep copy the class of the original; folding or masking one must not change the other."""
    first = pk.mask_weights(mixed(), sparsity=0.5, only="*.weight").model
    second = copy.deepcopy(first)
    wanted = first(X)
    assert torch.equal(second(X), wanted)
    pk.fold_masks(second, in_place=True)
    assert torch.equal(first(X), wanted)
    third = copy.deepcopy(first)
    with torch.no_grad():
        third.first.bias.zero_()
    pk.mask_weights(third, sparsity=0.5, only=("conv.bias", "first.bias"), in_place=True)
    assert torch.equal(first(X), wanted)
    assert type(pk.fold_masks(first).first) is nn.Linear
    assert torch.equal(first(X), wanted)
    fourth = pk.fold_masks(third)
    assert type(fourth.first) is nn.Linear
    assert torch.equal(fourth(X), third(X))


def test_the_state_has_each_weight_once_and_a_bit_for_each(tmp_path):
    """The stated bytes: weights in their dtype, packed masks, nothing else; bool only in memory."""
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(32, 10, bias=False))
    masked = pk.mask_weights(model, sparsity=0.5).model
    state = masked.state_dict()
    count = 64 * 32 + 32 * 10
    assert sum(value.numel() * value.element_size() for value in state.values()) == 4 * count + count // 8
    assert {name.rpartition(".")[2]: value.dtype for name, value in state.items()} == {
        "original": torch.float32,
        "packed": torch.uint8,
    }
    save_file(state, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * count + count // 8 + 1000
    in_memory = {name: value for name, value in masked.named_buffers() if name not in state}
    assert sum(value.numel() * value.element_size() for value in in_memory.values()) == count
    assert sum(parameter.numel() for parameter in masked.parameters()) == count


def test_a_tied_weight_is_stored_once_with_one_mask():
    masked = pk.mask_weights(mixed(), sparsity=0.5).model
    first, second = (getattr(masked, name).parametrizations.weight for name in ("first", "second"))
    assert first.original is second.original
    assert first[0] is second[0]
    state = masked.state_dict()
    names = [f"{place}.parametrizations.weight.0.packed" for place in ("first", "second")]
    assert state[names[0]].data_ptr() == state[names[1]].data_ptr()
    assert sum(1 for name, _ in masked.named_parameters() if name.startswith(("first", "second"))) == 3


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_weights_and_masks_back(assign):
    model = mixed()
    trained = pk.mask_weights(model, sparsity=0.7)
    file = io.BytesIO()
    torch.save(trained.model.state_dict(), file)
    file.seek(0)
    other = pk.mask_weights(mixed(), sparsity=0.2, criterion="random").model
    assert not torch.equal(other(X), trained.model(X))
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(other(X), trained.model(X))
    for module in (other, copy.deepcopy(other).half().float(), copy.deepcopy(other)):
        for name, keep in masks_of(trained).items():
            assert bool((read(module, name)[~keep] == 0).all())
    with pytest.raises(RuntimeError, match="packed"):
        other.load_state_dict({name: value[:1] for name, value in trained.model.state_dict().items()})


def test_nan_and_infinity_under_a_mask_become_zero():
    model = nn.Linear(4, 2)
    plan = pk.mask_weights(model, sparsity=0.5).plan
    keep = torch.from_numpy(plan.masks["weight"].keep())
    with torch.no_grad():
        model.weight[~keep] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])
    masked = pk.attach_masks(model, plan)
    assert bool(torch.isfinite(masked(torch.ones(3, 4))).all())
    with torch.no_grad():
        masked.parametrizations.weight.original[~keep] = torch.nan
    loss = masked(torch.ones(3, 4)).sum()
    loss.backward()
    assert bool((masked.parametrizations.weight.original.grad[~keep] == 0).all())
    folded = pk.fold_masks(masked)
    assert bool((folded.weight[~keep] == 0).all())
    assert not bool(torch.signbit(folded.weight[~keep]).any())
    assert torch.equal(folded.weight[keep], model.weight[keep])


def test_a_value_that_is_assigned_is_masked():
    masked = pk.mask_weights(nn.Linear(4, 2), sparsity=0.5).model
    masked.weight = torch.ones(2, 4)
    assert int(masked.weight.sum()) == 4
    assert int(masked.parametrizations.weight.original.sum()) == 4


def test_a_second_mask_takes_the_place_of_the_first():
    first = pk.mask_weights(mixed(), sparsity=0.3)
    second = pk.mask_weights(first.model, sparsity=0.8, scope="global")
    assert second.plan.fingerprint == first.plan.fingerprint
    for name, keep in masks_of(second).items():
        assert not bool((keep & ~masks_of(first)[name]).any())
        assert (
            len(second.model.get_submodule(name.rpartition(".")[0]).parametrizations[name.split(".")[-1]])
            == 1
        )
    assert list(pk.fold_masks(second.model).state_dict()) == list(mixed().state_dict())


@pytest.mark.parametrize(
    ("build", "run"),
    [
        (lambda: nn.LSTM(4, 6, 2), lambda model: model(torch.ones(3, 2, 4))[0]),
        (lambda: nn.MultiheadAttention(8, 2), lambda model: model(*[torch.ones(3, 2, 8)] * 3)[0]),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), lambda model: model(torch.ones(3, 2, 8))),
        (lambda: nn.Bilinear(3, 4, 2), lambda model: model(torch.ones(2, 3), torch.ones(2, 4))),
    ],
    ids=["lstm", "attention", "encoder", "bilinear"],
)
@pytest.mark.parametrize("train", [True, False])
def test_modules_that_read_their_weights_in_their_own_way_see_the_zeros(build, run, train):
    """Oracle: the plain module with zeros, which is what folding gives."""
    torch.manual_seed(0)
    model = build().eval()
    masked = pk.mask_weights(model, sparsity=0.7, only="*").model
    masked.train(train)
    folded = pk.fold_masks(masked)
    assert not torch.equal(run(folded), run(model))
    torch.testing.assert_close(run(masked), run(folded))
    assert list(folded.state_dict()) == list(model.state_dict())


def test_a_plan_for_another_model_is_refused():
    plan = pk.mask_weights(mixed(), sparsity=0.5).plan
    for other in (nn.Linear(4, 4), nn.ReLU(), nn.Sequential(mixed())):
        with pytest.raises(PlanError, match="made for a model"):
            pk.attach_masks(other, plan)
    wider = mixed()
    wider.scale = nn.Parameter(torch.randn(16, 9))
    with pytest.raises(PlanError, match="differs in scale"):
        pk.attach_masks(wider, plan)
    untied = mixed()
    untied.second.weight = nn.Parameter(untied.second.weight.detach().clone())
    with pytest.raises(PlanError, match="ties"):
        pk.attach_masks(untied, plan)


def test_a_compiled_module_is_refused_before_anything_is_done():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    before = model[0].weight.detach().clone()
    with pytest.raises(PlanError, match=r"1\.weight.*compiled"):
        pk.mask_weights(model, sparsity=0.5, in_place=True)
    assert torch.equal(model[0].weight, before)


def test_other_parametrizations_are_left_alone():
    """One below is not masked at all; one that comes on top has to go before folding."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    result = pk.mask_weights(model, sparsity=0.5)
    assert list(result.plan.masks) == ["1.weight"]
    assert torch.equal(pk.fold_masks(result.model)[0].weight, model[0].weight)
    parametrize.register_parametrization(result.model[1], "weight", nn.Identity())
    with pytest.raises(PlanError, match="beside its mask"):
        pk.fold_masks(result.model)


def test_a_masked_model_is_cut_only_when_it_is_folded():
    """Half of 12 units of what is folded; of what is masked a narrowed weight would have another mask."""
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    result = pk.mask_weights(model, sparsity=0.5)
    x = torch.randn(2, 8)
    with pytest.raises(PlanError, match="fold_masks"):
        pk.prune(result.model, args=(x,), sparsity=0.5)
    groups = pk.find_groups(pk.trace(result.model, (x,)))
    plan = pk.allocate(groups, pk.score(result.model, groups, "l2"), pk.Goal("sparsity", remove=0.5))
    with pytest.raises(PlanError, match="fold_masks"):
        pk.remove(result.model, plan, groups)
    small = pk.prune(pk.fold_masks(result.model), args=(x,), sparsity=0.5).model
    assert small[0].out_features == 6


def test_a_masked_model_is_exported_with_its_zeros():
    """Oracle: the folded model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pk.mask_weights(mixed(), sparsity=0.5)
        program = torch.export.export(result.model, (X,), strict=False)
        torch.testing.assert_close(program.module()(X), pk.fold_masks(result.model)(X))


DISTRIBUTED = """
import os, sys
import torch
import torch.distributed as dist
import prunekit as pk

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
result = pk.mask_weights(model, sparsity=0.5)
data = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
both = torch.nn.parallel.DistributedDataParallel(result.model)
alone = pk.mask_weights(model, sparsity=0.5).model
for net, read in ((both, data[rank]), (alone, data.flatten(0, 1))):
    steps = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        steps.zero_grad()
        net(read).square().mean().backward()
        steps.step()
for name, value in alone.state_dict().items():
    torch.testing.assert_close(both.module.state_dict()[name], value)
for name, mask in result.plan.masks.items():
    gone = ~torch.from_numpy(mask.keep())
    assert (getattr(both.module[int(name[0])], "weight")[gone] == 0).all()
print("same")
dist.barrier()  # One that ends while another still connects may abort.
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Oracle: one process on the data of both."""
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=240) for process in running]
    assert [(out.strip(), process.returncode) for (out, _), process in zip(ends, running, strict=True)] == [
        ("same", 0)
    ] * 2, ends


@pytest.mark.parametrize("scope", [None, "row", "global"])
@pytest.mark.parametrize("in_place", [False, True])
def test_folding_at_once_is_folding_what_was_attached(scope, in_place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {"sparsity": 0.6, "scope": scope}
    masked = pk.mask_weights(model, **asked)
    found = pk.mask_weights(model, **asked, fold=True, in_place=in_place)
    assert found.plan == masked.plan
    assert (found.model is model) == in_place
    expected = pk.fold_masks(masked.model).state_dict()
    assert list(found.model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    if not in_place:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters_scored_one_after_another_are_masked_as_together():
    """The steps score all of them before anything is chosen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    weights = pk.find_weights(model)
    scores = pk.score_weights(model, weights, "magnitude")
    for asked in ({"sparsity": 0.37}, {"sparsity": 0.37, "scope": "row"}, {"pattern": "1:4"}):
        expected = pk.select_weights(weights, scores, criterion="magnitude", **asked)
        assert pk.mask_weights(model, **asked).plan == expected
