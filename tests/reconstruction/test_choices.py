"""What a sweep is told to do: exact counts, plans, patterns, what is left alone, and bad input."""

import pytest
import torch
from tests.reconstruction.nets import Block, cut, kept, net
from torch import nn

from prunekit.errors import CalibrationError, PlanError, SelectionError, ShapeError
from prunekit.graph import trace
from prunekit.reconstruction import Choice, reconstruct_weights
from prunekit.surgery import fold_masks, mask_weights
from prunekit.workload import Batch


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
    found = reconstruct_weights(model, graph, Choice(sparsity=0.5), [Batch(args=(tokens,))])
    assert [layer.name for layer in found.layers] == ["once.weight"]
    assert {item.tensor for item in found.left_alone} == {"embed.weight", "twice.weight"}
    assert {item.reason for item in found.left_alone} == {
        "aten.embedding reads its weight too",
        "aten.linear reads its weight too",
    }
    batches = [Batch(args=(tokens,))]
    without = reconstruct_weights(model, graph, Choice(sparsity=0.5), batches, ignore="head")
    assert without.plan == found.plan
    mask = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(SelectionError, match="reads its weight too"):
        reconstruct_weights(model, graph, {"twice.weight": mask}, [Batch(args=(tokens,))])


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["element", "2:4", "1x4"])
def test_a_mask_plan_is_carried_out_with_less_error(pattern):
    model, graph, x = net("decoder")
    masked = mask_weights(model, sparsity=None if ":" in pattern else 0.5, pattern=pattern, ignore="2")
    found = reconstruct_weights(model, graph, masked.plan, cut(x, 4))
    folded = fold_masks(masked.model)
    parameters = dict(folded.named_parameters())
    for key, value in found.model.named_parameters():
        if key in found.plan.masks:
            assert (value[~kept(found, key)] == 0).all()
        else:
            assert torch.equal(value, parameters[key])
    assert found.plan == masked.plan
    assert (found.model(x) - model(x)).square().sum() < (folded(x) - model(x)).square().sum()


COUNTED = {
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8, bias=False), (3, 8, 6, 6)),
    "three groups": (lambda: nn.Conv1d(9, 6, 3, groups=3), (3, 9, 7)),
    "linear": (lambda: nn.Linear(7, 3), (9, 7)),
}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_exact_per_layer(name, sparsity):
    """Python's ``round`` of the share of the whole layer, however many groups it has."""
    torch.manual_seed(0)
    build, shape = COUNTED[name]
    model, x = nn.Sequential(build()), torch.randn(shape)
    found = reconstruct_weights(model, trace(model, (x,)), Choice(sparsity), [Batch(args=(x,))])
    (mask,) = found.plan.masks.values()
    assert mask.count - mask.kept == round(sparsity * mask.count)


@torch.no_grad()
def test_before_is_the_error_of_the_mask_alone():
    """By hand: the first layer's outputs with the masked weights, whether the bias then follows or not."""
    model, graph, x = net("decoder")
    x = x + 3
    for bias in (False, True):
        found = reconstruct_weights(
            model, graph, Choice(sparsity=0.6), cut(x, 4), sequential=False, compensate_bias=bias, only="2"
        )
        (layer,) = found.layers
        read = model[:2](x)
        bare = read @ model[2].weight.T
        masked = read @ (model[2].weight * kept(found, "2.weight")).T
        expected = (bare - masked).square().sum() / bare.square().sum()
        assert layer.before == pytest.approx(float(expected))
        assert layer.bias == bias
        updated = found.model[2](read) - model[2](read)
        assert layer.after == pytest.approx(float(updated.square().sum() / bare.square().sum()))


def test_the_plan_of_a_choice_fits_the_model():
    model, graph, x = net("decoder")
    found = reconstruct_weights(model, graph, Choice(pattern="2:4"), cut(x, 6))
    again = reconstruct_weights(model, graph, found.plan, cut(x, 6))
    assert (found.plan.pattern, found.plan.scope, found.plan.criterion) == ("2:4", "n:m", "sparsegpt")
    assert again.plan is found.plan
    for left, right in zip(found.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


class Loose(nn.Module):
    """Matrices of every kind that is no parameter, and of every kind that is not swept."""

    def __init__(self):
        super().__init__()
        self.first, self.plain = nn.Linear(8, 8), torch.randn(8, 8)
        self.inside = [torch.randn(8, 8), nn.Parameter(torch.randn(8, 8))]
        self.register_buffer("fixed", torch.randn(8, 8))
        self.several = nn.Parameter(torch.randn(2, 8, 8))
        self.spare = nn.Parameter(torch.randn(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.whole = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        x = torch.tanh(self.first(x)) @ self.plain @ self.inside[0] @ self.inside[1] @ self.fixed
        x = torch.bmm(x.expand(2, *x.shape[1:]), self.several)
        x = self.attention(x, x + 1, x, need_weights=False)[0]
        return x @ self.whole.view(4, 16).view(8, 8)


@torch.no_grad()
def test_every_matrix_is_swept_or_named():
    torch.manual_seed(0)
    model, x = Loose(), torch.randn(2, 5, 8)
    loose = [model.plain, *model.inside, model.fixed]
    before = [tensor.clone() for tensor in loose]
    graph = trace(model, (x,))
    found = reconstruct_weights(model, graph, Choice(sparsity=0.5), [Batch(args=(x,))])
    assert [layer.name for layer in found.layers] == ["first.weight", "attention.out_proj.weight", "whole"]
    reasons = {item.tensor: item.reason for item in found.left_alone}
    assert len(reasons) == len(found.left_alone) == 7
    for name in ("plain", "fixed"):
        assert reasons[name] == "it is no parameter of the model"
    assert reasons["several"] == "aten.bmm reads it, which is not known as a linear map here"
    assert reasons["spare"] == "nothing reads it"
    assert "attention.in_proj_weight" in reasons
    assert all(torch.equal(*pair) for pair in zip(loose, before, strict=True))


def test_a_pattern_may_be_any_name_of_a_tied_weight():
    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(0, 16, (4, 6))
    graph = trace(model, (tokens,))
    found = reconstruct_weights(
        model, graph, Choice(sparsity=0.5), [Batch(args=(tokens,))], ignore=("head", "twice")
    )
    assert [layer.name for layer in found.layers] == ["once.weight"]
    assert not found.left_alone


def test_a_graph_of_another_model_is_refused():
    """Nothing of the traced model is written to."""
    _, graph, x = net("decoder")
    for other in (nn.Sequential(Block().double()), net("images")[0], nn.Sequential(Block(16), Block(16))):
        with pytest.raises(ShapeError, match="another model"):
            reconstruct_weights(other, graph, Choice(sparsity=0.5), cut(x, 4))


def test_inference_mode_gives_the_same():
    model, graph, x = net("images")
    outside = reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, 4))
    with torch.inference_mode():
        inside = reconstruct_weights(model, graph, Choice(sparsity=0.5), cut(x, 4))
    for left, right in zip(outside.model.parameters(), inside.model.parameters(), strict=True):
        assert torch.equal(left, right)
        assert not right.is_inference()


def test_patterns_choose_layers():
    model, graph, x = net("decoder")
    found = reconstruct_weights(
        model, graph, Choice(sparsity=0.5), cut(x, 6), only=("0", "*.query"), ignore="*.down"
    )
    names = {layer.name for layer in found.layers}
    inside = {f"0.{name}.weight" for name in ("query", "key", "value", "output", "up")}
    assert names == inside | {"1.query.weight"} == set(found.plan.masks)


BAD = {
    "no batches": (CalibrationError, "no calibration batches", lambda x: (Choice(sparsity=0.5), [], {})),
    "a tensor": (CalibrationError, "Tensor", lambda x: (Choice(sparsity=0.5), x, {})),
    "another length": (
        CalibrationError,
        "traced with",
        lambda x: (Choice(sparsity=0.5), [Batch(args=(x[:, :3],))], {}),
    ),
    "nan": (
        CalibrationError,
        r"0\.query\.weight",
        lambda x: (Choice(pattern="2:4"), cut(x * torch.nan, 4), {}),
    ),
    "does not divide": (ShapeError, "weight", lambda x: (Choice(pattern="2:3"), cut(x, 4), {})),
    "no such pattern": (SelectionError, "matches", lambda x: (Choice(0.5), cut(x, 4), {"only": "nothing"})),
    "nothing left": (SelectionError, "no layer", lambda x: (Choice(0.5), cut(x, 4), {"ignore": "*"})),
    "unknown mask": (SelectionError, "nothing", lambda x: ({"nothing": x > 0}, cut(x, 4), {})),
    "a number": (SelectionError, "choice: It is 0.5", lambda x: (0.5, cut(x, 4), {})),
    "a pattern": (SelectionError, "choice: It is '2:4'", lambda x: ("2:4", cut(x, 4), {})),
    "a list of masks": (SelectionError, "choice: It is a list", lambda x: ([x > 0], cut(x, 4), {})),
    "no sweep": (SelectionError, "sweep: It is a float", lambda x: (Choice(0.5), cut(x, 4), {"sweep": 0.1})),
    "products": (SelectionError, "products", lambda x: (Choice(0.5), cut(x, 4), {"products": torch.int32})),
    "another dtype": (CalibrationError, "float32", lambda x: (Choice(0.5), cut(x.float(), 4), {})),
    "patterns beside masks": (
        SelectionError,
        "only or ignore",
        lambda x: ({"2.weight": torch.ones(3, 8) > 0}, cut(x, 4), {"ignore": "0"}),
    ),
    "another model's plan": (
        PlanError,
        "fingerprint",
        lambda x: (
            mask_weights(nn.Sequential(Block(), Block(), nn.Linear(8, 4)), sparsity=0.5, only="0").plan,
            cut(x, 4),
            {},
        ),
    ),
    "mask's shape": (ShapeError, "mask", lambda x: ({"2.weight": x > 0}, cut(x, 4), {})),
    "mask's dtype": (ShapeError, "bool", lambda x: ({"2.weight": torch.ones(3, 8)}, cut(x, 4), {})),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    error, text, given = BAD[case]
    model, graph, x = net("decoder")
    what, calibration, options = given(x)
    with pytest.raises(error, match=text):
        reconstruct_weights(model, graph, what, calibration, **options)
