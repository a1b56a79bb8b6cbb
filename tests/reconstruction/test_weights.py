"""Single weights swept layer after layer: against hooks and the solver, layer by layer."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from tests.reconstruction.nets import NETS, cut, kept, net
from torch import nn

from prunekit.graph import trace
from prunekit.reconstruction import Choice, Sweep, reconstruct_weights, shelf, sparsegpt
from prunekit.reconstruction.stream import Stream, stages


def matrix(module, weight):
    """``[groups, out, in]``, the kernel's positions before the channels, as N:M counts them."""
    if isinstance(module, nn.Linear):
        return weight[None]
    return weight.movedim(1, -1).flatten(1).unflatten(0, (module.groups, -1))


def inputs_of(module, x):
    """``[groups, rows, in]`` by torch's own unfold, of one group after another."""
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2)[None]
    margins = module._reversed_padding_repeated_twice if isinstance(module.padding, str) else None
    x = x if margins is None else F.pad(x, margins)
    padding = module.padding if margins is None else 0
    found = []
    for part in x.chunk(module.groups, 1):
        rows = F.unfold(part, module.kernel_size, module.dilation, padding, module.stride)
        rows = rows.unflatten(1, (part.shape[1], -1)).transpose(1, 2).flatten(1, 2)
        found.append(rows.mT.flatten(0, 1))
    return torch.stack(found)


def by_hand(model, x, given, sweep, sequential):
    """Hooks see what each layer reads; each is swept before the next one is looked at."""
    result = copy.deepcopy(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for name in layers:
        seen = []
        source = (result if sequential else model).get_submodule(name)
        hook = source.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        (result if sequential else model)(x)
        hook.remove()
        module = result.get_submodule(name)
        rows = inputs_of(module, seen[0])
        mask = None if isinstance(given, Choice) else matrix(module, given[f"{name}.weight"])
        for group in range(len(rows)):
            swept = sparsegpt(
                matrix(module, module.weight.detach())[group],
                rows[group].T @ rows[group],
                choice=given if mask is None else None,
                keep=None if mask is None else mask[group],
                sweep=sweep,
            )
            solved = swept.solution.weight
            with torch.no_grad():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(solved)
                else:
                    out = len(module.weight) // module.groups
                    shape = (out, *module.weight.shape[2:], module.weight.shape[1])
                    module.weight[group * out : (group + 1) * out] = solved.reshape(shape).movedim(-1, 1)
    return result


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("choice", [Choice(sparsity=0.5), Choice(pattern="2:4"), "masks"], ids=str)
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_it_is_the_solver_layer_by_layer(name, choice, sequential):
    model, graph, x = net(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = choice
    if choice == "masks":
        torch.manual_seed(1)
        given = {
            key: torch.rand(value.shape) < 0.6 for key, value in model.named_parameters() if value.ndim > 1
        }
    sweep = Sweep(block_size=3, selection_size=6)
    found = reconstruct_weights(model, graph, given, cut(x, 5), sweep=sweep, sequential=sequential)
    expected = by_hand(model, x, given, sweep, sequential)
    for (key, value), wanted in zip(found.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-8)
        if value.ndim > 1:
            assert (value[~kept(found, key)] == 0).all()
        else:
            assert torch.equal(value, before[key])
    assert all(layer.after <= layer.before for layer in found.layers)
    assert not found.left_alone
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if choice == "masks":
        assert all(torch.equal(kept(found, key), mask) for key, mask in given.items())


@pytest.mark.parametrize("name", NETS)
def test_any_split_into_batches_gives_the_same(name):
    """The same masks, and weights up to the order of float64 sums."""
    model, graph, x = net(name)
    one, several = (reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, size)) for size in (12, 2))
    assert one.plan == several.plan
    for left, right in zip(one.model.parameters(), several.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


class Turned(nn.Module):
    """Four layers that read their weights turned, and, where said, copied."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(self.read(x, layer.weight))
        return x


READINGS = {
    "turned": lambda x, w: x @ w.t(),
    "turned and copied": lambda x, w: x @ w.t().contiguous(),
    "copied": lambda x, w: F.linear(x, w.t().contiguous().t().contiguous()),
}


@pytest.mark.parametrize("size", [20, 2])
@pytest.mark.parametrize("name", READINGS)
@torch.no_grad()
def test_how_a_weight_is_read_changes_nothing(name, size):
    """Copies of a weight are made anew once it has changed: the twin that reads it plainly."""
    torch.manual_seed(0)
    plain = Turned(F.linear).double()
    model = Turned(READINGS[name]).double()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(40, 16).double()
    expected = reconstruct_weights(plain, trace(plain, (x[:2],)), Choice(sparsity=0.5), cut(x, 40))
    found = reconstruct_weights(model, trace(model, (x[:2],)), Choice(sparsity=0.5), cut(x, size))
    for left, right in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
    for left, right in zip(found.layers, expected.layers, strict=True):
        assert (left.before, left.after) == pytest.approx((right.before, right.after))


def test_in_place_changes_the_model_itself():
    model, graph, x = net("decoder")
    apart = reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, 6))
    found = reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, 6), in_place=True)
    assert found.model is model
    for left, right in zip(model.parameters(), apart.model.parameters(), strict=True):
        assert torch.equal(left, right)


@torch.no_grad()
def test_single_precision_models_are_swept_in_it():
    model, _, x = net("decoder")
    model, x = model.float(), x.float()
    graph = trace(model, (x[:2],))
    single, double = (
        reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, 4), products=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert all(value.dtype == torch.float32 for value in single.model.parameters())
    one = sum(mask.count for mask in single.plan.masks.values())
    differing = sum(int((kept(single, key) != kept(double, key)).sum()) for key in single.plan.masks)
    assert differing <= 2 * one / 1000  # One weight in a thousand may swap: scores that close tie in float32.
    for layer, other in zip(single.layers, double.layers, strict=True):
        assert layer.after == pytest.approx(other.after, rel=0.01)


@torch.no_grad()
def test_biases_take_up_what_is_constant():
    model, graph, x = net("decoder")
    x = x + 3
    plain, shifted = (
        reconstruct_weights(
            model, graph, Choice(sparsity=0.6), cut(x, 4), sequential=False, compensate_bias=bias
        )
        for bias in (False, True)
    )
    assert [layer.bias for layer in shifted.layers] == [
        f"{layer.name.removesuffix('weight')}bias" in dict(model.named_parameters()) for layer in plain.layers
    ]
    seen = []
    model[0].up.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(x)
    read, wanted = seen[0]
    errors = [(found.model[0].up(read) - wanted).mean((0, 1)).abs().max() for found in (plain, shifted)]
    assert errors[1] < 1e-10 < errors[0]


def test_layers_that_read_the_same_are_of_one_stage():
    _, graph, x = net("decoder")
    linear = {node for node in graph.nodes if "linear" in str(node.target)}
    stage = stages(graph.nodes, linear)
    assert sorted(stage[node.name] for node in linear) == [1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9]
    held = []
    model, _, _ = net("decoder")
    tensors = dict(model.named_parameters())
    stream = Stream(
        graph.program.graph_module,
        lambda node: tensors.get(graph.tensors.get(node.name, "")),
        stage,
        [[x], [x]],
    )
    with torch.no_grad():
        for now in range(9):
            for batch in range(2):
                stream.advance(batch, now, {})
            held.append(stream.held_bytes)
    assert max(held) <= 2 * 6 * x.nbytes  # of both batches: the hidden state, and three times it at most


@torch.no_grad()
def test_what_waits_in_pieces_is_the_same(monkeypatch):
    """Pieces of three values, of seven batches: the last one is smaller, and the last batch too."""
    model, graph, x = net("decoder")
    batches = cut(torch.cat([x, x + 1])[:20], 3)
    given = reconstruct_weights(model, graph, Choice(sparsity=0.5), batches)
    monkeypatch.setattr(shelf, "PIECE", 3 * x[:3].nbytes)
    found = reconstruct_weights(model, graph, Choice(sparsity=0.5), batches)
    assert found.peak_bytes != given.peak_bytes
    assert found.plan == given.plan
    for left, right in zip(found.model.parameters(), given.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_piece_is_free_once_its_values_are(monkeypatch):
    monkeypatch.setattr(shelf, "PIECE", 3 * 8 * 4)
    held = shelf.Shelf(7)
    slots = [held.put("node", torch.full((8,), float(number))) for number in range(7)]
    assert [slot.tolist() for slot in slots] == [[float(number)] * 8 for number in range(7)]
    pieces = [slot.untyped_storage() for slot in slots]
    assert sorted({piece.data_ptr(): piece.nbytes() for piece in pieces}.values()) == [32 * 3, 32 * 4]
    watched = [weakref.ref(slot._base) for slot in slots]
    del slots, pieces
    assert all(piece() is None for piece in watched)


def test_in_place_operators_keep_the_order():
    _, graph, _ = net("images")
    convolutions = {node for node in graph.nodes if "conv2d" in str(node.target)}
    stage = stages(graph.nodes, convolutions)
    assert [stage[node.name] for node in graph.nodes if node in convolutions] == [1, 2, 3]
    running = [stage[node.name] for node in graph.nodes if node.op == "call_function"]
    assert running == sorted(running)
