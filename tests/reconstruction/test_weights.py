"""Single weights swept layer after layer: against hooks and the solver, layer by layer."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.graph import trace
from prunekit.reconstruction import Choice, Sweep, reconstruct_weights, shelf, sparsegpt
from prunekit.reconstruction.sparsegpt import lowest
from prunekit.reconstruction.stream import Stream, stages
from prunekit.surgery import fold_masks, mask_weights
from prunekit.workload import Batch


class Block(nn.Module):
    """Attention and two linear layers, pre-normed."""

    def __init__(self, width=8):
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        h = self.norm(x)
        query, key, value = (
            layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.other(x))))


def decoder():
    return nn.Sequential(Block(), Block(), nn.Linear(8, 3))


def images():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, (1, 3), padding="same", dilation=2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


NETS = {"decoder": (decoder, (12, 5, 8)), "images": (images, (12, 4, 8, 8))}


def net(name):
    build, shape = NETS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    x = torch.randn(shape).double()
    return model, trace(model, (x[:2],)), x


def cut(x, size):
    return [Batch(args=(part,)) for part in x.split(size)]


def kept(found, name):
    return torch.from_numpy(found.masks[name].keep())


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
    found = reconstruct_weights(model, graph, cut(x, 5), given, sweep=sweep, sequential=sequential)
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
    one, several = (reconstruct_weights(model, graph, cut(x, size), Choice(sparsity=0.5)) for size in (12, 2))
    assert one.masks == several.masks
    for left, right in zip(one.model.parameters(), several.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


def test_in_place_changes_the_model_itself():
    model, graph, x = net("decoder")
    apart = reconstruct_weights(model, graph, cut(x, 6), Choice(sparsity=0.5))
    found = reconstruct_weights(model, graph, cut(x, 6), Choice(sparsity=0.5), in_place=True)
    assert found.model is model
    for left, right in zip(model.parameters(), apart.model.parameters(), strict=True):
        assert torch.equal(left, right)


@torch.no_grad()
def test_single_precision_models_are_swept_in_it():
    model, _, x = net("decoder")
    model, x = model.float(), x.float()
    graph = trace(model, (x[:2],))
    single, double = (
        reconstruct_weights(model, graph, cut(x, 4), Choice(sparsity=0.5), products=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert all(value.dtype == torch.float32 for value in single.model.parameters())
    same = [mask == double.masks[key] for key, mask in single.masks.items()]
    assert sum(same) >= len(same) - 1
    for layer, other in zip(single.layers, double.layers, strict=True):
        assert layer.after == pytest.approx(other.after, rel=0.01)


@torch.no_grad()
def test_biases_take_up_what_is_constant():
    model, graph, x = net("decoder")
    x = x + 3
    plain, shifted = (
        reconstruct_weights(
            model, graph, cut(x, 4), Choice(sparsity=0.6), sequential=False, compensate_bias=bias
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
    given = reconstruct_weights(model, graph, batches, Choice(sparsity=0.5))
    monkeypatch.setattr(shelf, "PIECE", 3 * x[:3].nbytes)
    found = reconstruct_weights(model, graph, batches, Choice(sparsity=0.5))
    assert found.peak_bytes != given.peak_bytes
    assert found.masks == given.masks
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


class Tied(nn.Module):
    """An embedding that is the output layer too, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.twice, self.once = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.once(torch.relu(self.twice(torch.relu(self.twice(self.embed(tokens)))))))


def test_weights_that_others_read_are_left_alone():
    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(0, 16, (4, 6))
    graph = trace(model, (tokens,))
    found = reconstruct_weights(model, graph, [Batch(args=(tokens,))], Choice(sparsity=0.5))
    assert [layer.name for layer in found.layers] == ["once.weight"]
    assert {item.tensor for item in found.left_alone} == {"embed.weight", "twice.weight"}
    assert {item.reason for item in found.left_alone} == {
        "aten.embedding reads its weight too",
        "aten.linear reads its weight too",
    }
    batches = [Batch(args=(tokens,))]
    without = reconstruct_weights(model, graph, batches, Choice(sparsity=0.5), ignore="head")
    assert without.masks == found.masks
    mask = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(SelectionError, match="reads its weight too"):
        reconstruct_weights(model, graph, [Batch(args=(tokens,))], {"twice.weight": mask})


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["element", "2:4", "1x4"])
def test_a_mask_plan_is_carried_out_with_less_error(pattern):
    model, graph, x = net("decoder")
    masked = mask_weights(model, sparsity=None if ":" in pattern else 0.5, pattern=pattern, ignore="2")
    found = reconstruct_weights(model, graph, cut(x, 4), masked.plan)
    folded = fold_masks(masked.model)
    parameters = dict(folded.named_parameters())
    for key, value in found.model.named_parameters():
        if key in found.masks:
            assert (value[~kept(found, key)] == 0).all()
        else:
            assert torch.equal(value, parameters[key])
    assert found.masks == masked.plan.masks
    assert (found.model(x) - model(x)).square().sum() < (folded(x) - model(x)).square().sum()


def test_patterns_choose_layers():
    model, graph, x = net("decoder")
    found = reconstruct_weights(
        model, graph, cut(x, 6), Choice(sparsity=0.5), only=("0", "*.query"), ignore="*.down"
    )
    names = {layer.name for layer in found.layers}
    inside = {f"0.{name}.weight" for name in ("query", "key", "value", "output", "up")}
    assert names == inside | {"1.query.weight"} == set(found.masks)


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_the_lowest_are_those_of_a_stable_sort(count):
    scores = torch.tensor([3.0, 1, 1, 0, 2, 1, 0, 3, 2, 1, 1, 0])
    expected = torch.zeros(12, dtype=torch.bool)
    expected[torch.argsort(scores, stable=True)[:count]] = True
    assert torch.equal(lowest(scores, count), expected)


BAD = {
    "no batches": (CalibrationError, "no calibration batches", lambda x: ([], Choice(sparsity=0.5), {})),
    "a tensor": (CalibrationError, "Tensor", lambda x: (x, Choice(sparsity=0.5), {})),
    "another length": (
        CalibrationError,
        "traced with",
        lambda x: ([Batch(args=(x[:, :3],))], Choice(sparsity=0.5), {}),
    ),
    "nan": (
        CalibrationError,
        r"0\.query\.weight",
        lambda x: (cut(x * torch.nan, 4), Choice(pattern="2:4"), {}),
    ),
    "does not divide": (ShapeError, "weight", lambda x: (cut(x, 4), Choice(pattern="2:3"), {})),
    "no such pattern": (SelectionError, "matches", lambda x: (cut(x, 4), Choice(0.5), {"only": "nothing"})),
    "nothing left": (SelectionError, "no layer", lambda x: (cut(x, 4), Choice(0.5), {"ignore": "*"})),
    "unknown mask": (SelectionError, "nothing", lambda x: (cut(x, 4), {"nothing": x > 0}, {})),
    "mask's shape": (ShapeError, "mask", lambda x: (cut(x, 4), {"2.weight": x > 0}, {})),
    "mask's dtype": (ShapeError, "bool", lambda x: (cut(x, 4), {"2.weight": torch.ones(3, 8)}, {})),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    error, text, given = BAD[case]
    model, graph, x = net("decoder")
    calibration, what, options = given(x)
    with pytest.raises(error, match=text):
        reconstruct_weights(model, graph, calibration, what, **options)
