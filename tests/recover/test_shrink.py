"""A cut in place gives what removal gives, in the user's own objects, or leaves everything alone."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from tests.recover.following import OPTIMIZERS, halved, learn, same_state, trainable
from tests.zoo.toys import groups_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

import prunekit as pk
from prunekit.errors import PlanError, ProofError, TrainingError, UsageError
from prunekit.recover import Shrunk, follow, shrink
from prunekit.recover.shrinking.shrink import check_whole
from prunekit.surgery import remove

TOYS = (
    "basic blocks",
    "flatten",
    "tied weights",
    "depthwise with multiplier",
    "shuffled unit",
    "frozen parameters",
    "slopes",
)
"""Residual, flattened, tied, grouped, permuted, frozen and one-dimensional parameters."""


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", TOYS)
def test_a_cut_in_place_is_the_removal(name, kind):
    # Oracle: remove() and follow(), which make another model, on copies of model and optimizer.
    model, plan = halved(name)
    optimizer = OPTIMIZERS[kind](trainable(model).values())
    learn(optimizer, trainable(model), seed=0)
    twin = copy.deepcopy(model)
    on_twin = OPTIMIZERS[kind](trainable(twin).values())
    on_twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    removal = remove(twin, plan, groups_of(name))
    follow(on_twin, twin, removal, plan, groups_of(name))
    modules, state = dict(model.named_modules()), optimizer.state
    untouched = {id(each) for each in model.parameters()}

    done = shrink(model, plan, groups_of(name), optimizers=[optimizer])

    assert dict(model.named_modules()) == modules
    assert repr(model) == repr(removal.model)
    assert list(model.state_dict()) == list(removal.model.state_dict())
    same_state(model.state_dict(), removal.model.state_dict())
    pk.check_optimizer(optimizer, model)
    assert optimizer.state is state
    assert len(done.followed[0].narrowed) > 0
    new = {each: id(parameter) not in untouched for each, parameter in model.named_parameters()}
    assert {each for each, is_new in new.items() if is_new} == set(done.replaced)
    small = trainable(removal.model)
    for each, parameter in trainable(model).items():
        assert parameter.grad is None or each not in done.replaced
        same_state(optimizer.state[parameter], on_twin.state[small[each]])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_as_with_a_new_model(kind):
    # Oracle: training the model that prune() gives, with follow(), the scheduler and the scaler of its own.
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    data = torch.randn(6, 8, 6)

    def run(net, parts, batches):
        optimizer, scheduler, scaler, average = parts
        for x in batches:
            optimizer.zero_grad()
            scaler.scale(net(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            average.update_parameters(net)

    def begin(net):
        optimizer = OPTIMIZERS[kind](net.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        parts = optimizer, scheduler, torch.amp.GradScaler("cpu", init_scale=4.0), AveragedModel(net)
        run(net, parts, data[:3])
        return parts

    model, other = dense, copy.deepcopy(dense)
    parts, on_other = begin(model), begin(other)
    result = pk.prune(other, (data[0],), sparsity=0.5)
    pk.follow(on_other[0], other, result, result.plan, result.groups)
    pk.follow_average(on_other[3], result, result.plan, result.groups)
    pk.shrink(model, result.plan, result.groups, optimizers=[parts[0]], averages=[parts[3]])
    run(model, parts, data[3:])
    run(result.model, on_other, data[3:])
    same_state(model.state_dict(), result.model.state_dict())
    same_state(parts[3].state_dict(), on_other[3].state_dict())
    assert parts[1].get_last_lr() == on_other[1].get_last_lr()
    assert (model[0].in_features, model[0].out_features) == (6, 8)


@pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own
@pytest.mark.parametrize(
    "kinds",
    ["neuron", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("head", "layer", "head_dim"))],
)
def test_a_transformer_keeps_its_configuration_object(kinds):
    # Oracle: prune() and follow() on copies.
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=31, max_position_embeddings=16, **widths)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    tokens = {"input_ids": torch.randint(0, 31, (2, 7))}
    optimizer = torch.optim.AdamW(model.parameters())
    learn(optimizer, trainable(model), seed=0)
    other = copy.deepcopy(model)
    on_other = torch.optim.AdamW(other.parameters())
    on_other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    result = pk.prune(other, kwargs=tokens, sparsity=0.5, granularity=kinds, form="own class")
    followed = pk.follow(on_other, other, result, result.plan, result.groups)
    done = shrink(model, result.plan, result.groups, optimizers=[optimizer])
    assert done.followed == (followed,)
    assert done.scaled == result.scaled
    assert model.config is config
    assert config.to_dict() == result.model.config.to_dict()
    same_state(model.state_dict(), result.model.state_dict())
    same_state(model(**tokens), result.model(**tokens))
    small = trainable(result.model)
    for name, parameter in trainable(model).items():
        same_state(optimizer.state[parameter], on_other.state[small[name]])


class Configured(nn.Module):
    """Widths in a configuration that modules share, in a list, and in an object of the module's own."""

    class Config:
        def __init__(self):
            self.hidden, self.names = 16, ["a", "b"]

    def __init__(self):
        super().__init__()
        self.config = self.Config()
        self.first = nn.Linear(4, self.config.hidden)
        self.second = nn.Linear(self.config.hidden, 2)
        self.layers = [self.first, self.second]
        self.calls = []
        self.function = torch.tanh

    def forward(self, x):
        h = self.function(self.first(x)).reshape(-1, self.config.hidden)
        return self.second(h)


def test_hooks_modes_configuration_and_references_stay():
    model, x = Configured(), torch.randn(5, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    held = model.config, model.first, model.layers, model.calls, model.config.names
    model.first.eval()
    model.first.register_forward_hook(lambda module, args, output: model.calls.append(output.shape[1]))
    shrink(model, result.plan, result.groups)
    assert (model.config, model.first, model.layers, model.calls, model.config.names) == held
    assert all(a is b for a, b in zip(held, (model.config, model.first, model.layers), strict=False))
    assert model.config.hidden == model.first.out_features == 8
    assert [module.training for module in model.modules()] == [True, False, True]
    model.calls.clear()
    torch.testing.assert_close(model(x), result.model(x), rtol=0, atol=0)
    assert model.calls == [8]


def test_layers_go_and_those_behind_move_up():
    # Oracle: the layers that stay, by identity, and the outputs of remove().
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.tanh(self.inner(x))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), *(Block() for _ in range(4))), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn(optimizer, trainable(model), seed=0)
    result = pk.prune(model, (x,), sparsity=0.5, granularity="layer")
    blocks, momenta = list(model), {id(each): optimizer.state[each] for each in model.parameters()}
    done = shrink(model, result.plan, result.groups, optimizers=[optimizer])
    assert len(model) == 3
    assert all(any(left is block for block in blocks) for left in model)
    assert done.replaced == ()
    assert done.moved == result.moved
    assert len(done.followed[0].gone) == 4
    assert all(optimizer.state[each] is not None for each in model.parameters())
    for each in model.parameters():
        same_state(optimizer.state[each], momenta[id(each)])
    torch.testing.assert_close(model(x), result.model(x), rtol=0, atol=0)


def test_a_recurrent_net_goes_on():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    model, x = Net(), torch.randn(3, 5, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shrink(model, result.plan, result.groups, optimizers=[optimizer])
    torch.testing.assert_close(model(x), result.model(x), rtol=0, atol=0)
    before = [each.detach().clone() for each in model.parameters()]
    model(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_compiled_model_compiles_again():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager")
    compiled(x).sum().backward()
    with pytest.raises(UsageError, match="_orig_mod"):
        check_whole(compiled)
    result = pk.prune(model, (x,), sparsity=0.5)
    shrink(compiled._orig_mod, result.plan, result.groups)
    found = compiled(x)
    torch.testing.assert_close(found, result.model(x), rtol=0, atol=0)
    found.sum().backward()
    assert model[0].weight.grad.shape == (4, 4)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def fingerprint(model, optimizer, average):
    tensors = [*model.parameters(), *average.parameters(), *optimizer.param_groups[0]["params"]]
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [id(each) for each in (*tensors, *values)], repr(model), dict(model.named_modules())


class Halfway(Exception):
    """Something that happens in the middle."""


@pytest.mark.parametrize("place", ["edits_of", "check_optimizer", "follow", "verify", "_rehearse"])
def test_after_an_error_everything_is_as_it_was(place, monkeypatch):
    # Oracle: identities of all tensors, states and modules before.
    model, x = mlp(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learn(optimizer, trainable(model), seed=0)
    average = AveragedModel(model)
    result = pk.prune(model, (x,), sparsity=0.5)
    before, outputs = fingerprint(model, optimizer, average), model(x)
    room = importlib.import_module("prunekit.recover.shrinking.shrink")
    own = getattr(room, place)

    def fails(*given, **named):
        own(*given, **named)
        raise Halfway

    monkeypatch.setattr(room, place, fails)
    with pytest.raises(Halfway):
        shrink(model, result.plan, result.groups, optimizers=[optimizer], averages=[average])
    assert fingerprint(model, optimizer, average) == before
    torch.testing.assert_close(model(x), outputs, rtol=0, atol=0)


def test_an_optimizer_of_another_model_changes_nothing():
    model, x = mlp(), torch.randn(3, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    good, bad = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, mlp()))
    held = list(good.param_groups[0]["params"])
    with pytest.raises(TrainingError, match="are not the"):
        shrink(model, result.plan, result.groups, optimizers=[good, bad])
    assert all(a is b for a, b in zip(held, good.param_groups[0]["params"], strict=True))
    assert model[0].out_features == 8


def test_hooks_of_a_tensor_are_not_lost():
    model, x = mlp(), torch.randn(3, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    model[2].bias.register_hook(lambda gradient: gradient)  # It stays the same tensor.
    handle = model[0].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(UsageError, match=r"parameter '0\.weight'"):
        shrink(model, result.plan, result.groups)
    handle.remove()
    assert isinstance(shrink(model, result.plan, result.groups), Shrunk)
    assert model[2].bias._backward_hooks


class Rotated(nn.Module):
    """A query and a value of different sizes: no attribute of the class says so."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.Linear(4, 24), nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.attention(x).view(-1, 3, 8).unbind(1)
        return self.out(torch.tanh(q * k + v))


def test_what_cannot_be_cut_in_place_says_so():
    model, x = mlp(), torch.randn(3, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    with pytest.raises(UsageError, match=r"wrapper\.module"):
        shrink(nn.DataParallel(model), result.plan, result.groups)
    graph = torch.export.export(model, (x,)).module()
    with pytest.raises(UsageError, match="graph"):
        shrink(graph, result.plan, result.groups)
    with pytest.raises(PlanError, match="shape"):
        shrink(result.model, result.plan, result.groups)
    rotated = pk.prune(Rotated(), (x,), sparsity=0.5)
    assert rotated.form == "graph module"
    with pytest.raises(ProofError, match="class cannot follow"):
        shrink(Rotated(), rotated.plan, rotated.groups)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapper_for_several_processes_is_found_wherever_it_is(one_process):
    model, x = mlp(), torch.randn(3, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    wrapper = nn.parallel.DistributedDataParallel(nn.Sequential(model))
    for each in (wrapper, model):
        with pytest.raises(UsageError, match=r"wrapper\.module"):
            shrink(each, result.plan, result.groups)
    del wrapper, each
    shrink(model, result.plan, result.groups)
    wrapper = nn.parallel.DistributedDataParallel(model)
    wrapper(x).square().mean().backward()
    assert model[0].weight.grad.shape == (4, 4)


def test_a_sharded_model_is_refused(one_process):
    from torch.distributed.fsdp import fully_shard

    model, x = mlp(), torch.randn(3, 4)
    result = pk.prune(model, (x,), sparsity=0.5)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    with pytest.raises(UsageError, match="sharded"):
        shrink(fully_shard(model, mesh=mesh), result.plan, result.groups)
