"""What a pattern's pieces are, how they are scored, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import SelectionError, ShapeError
from prunekit.importance import find_weights, input_norms, score_weights
from prunekit.plan import Block, Element, NOfM, select_weights
from prunekit.plan.pattern import parse_pattern, score_pieces


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("element", Element()),
        ("2:4", NOfM(2, 4)),
        ("4x8", Block(4, 8)),
        ("1x*", Block(1, None)),
        ("row", Block(1, None)),
        ("column", Block(None, 1)),
        ("*x2", Block(None, 2)),
    ],
)
def test_a_pattern_is_read_as_it_is_written(text, pattern):
    assert parse_pattern(text) == pattern
    assert parse_pattern(pattern) is pattern
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["", "4:2", "4:4", "0:4", "2:", "0x4", "*x*", "rows", "2.0:4", 4, None])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(SelectionError, match="pattern"):
        parse_pattern(text)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0, float("inf")])
def test_the_score_of_a_piece_is_the_power_mean(power):
    """Oracle: NumPy's norm in float64, over the number of weights."""
    scores = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    found = score_pieces(scores, (2, 4), power)
    for row in range(3):
        for column in range(2):
            piece = scores[2 * row : 2 * row + 2, 4 * column : 4 * column + 4].double().numpy().ravel()
            scale = 1 if np.isinf(power) else 8 ** (1 / power)
            assert found[row, column].item() == pytest.approx(np.linalg.norm(piece, power) / scale, rel=1e-5)


MODULES = {
    "linear": (nn.Linear(8, 6), "weight"),
    "convolution": (nn.Conv2d(8, 4, 3), "weight"),
    "grouped": (nn.Conv2d(8, 8, 3, groups=2), "weight"),
    "transposed": (nn.ConvTranspose2d(8, 4, 3), "weight"),
    "bilinear": (nn.Bilinear(4, 4, 3), "weight"),
    "recurrent": (nn.LSTM(8, 4), "weight_ih_l0"),
    "attention": (nn.MultiheadAttention(8, 2), "in_proj_weight"),
}
INPUTS_LAST = {
    "linear": (0, 1),
    "convolution": (0, 2, 3, 1),
    "grouped": (0, 2, 3, 1),
    "transposed": (1, 2, 3, 0),
    "bilinear": (0, 1, 2),
    "recurrent": (0, 1),
    "attention": (0, 1),
}
"""Dimensions in the order outputs, positions, inputs."""


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
@pytest.mark.parametrize("kind", MODULES)
def test_every_group_of_inputs_keeps_n_of_m(kind, n, m):
    """Oracle: NumPy's sort within groups of m along the inputs, for any module that says what they are."""
    module, name = MODULES[kind]
    weights = find_weights(module, only=name)
    scores = {name: torch.rand(getattr(module, name).shape, generator=torch.Generator().manual_seed(1))}
    keep = select_weights(weights, scores, pattern=NOfM(n, m)).masks[name].keep()
    groups = scores[name].numpy().transpose(INPUTS_LAST[kind]).reshape(-1, m)
    wanted = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(wanted, np.argsort(-groups, axis=1, kind="stable")[:, :n], True, axis=1)
    assert (keep.transpose(INPUTS_LAST[kind]).reshape(-1, m) == wanted).all()


@pytest.mark.parametrize(
    ("module", "pattern", "says"),
    [
        (nn.Linear(6, 4), "2:4", "[4, 6] has 6 inputs, which do not divide by 4"),
        (nn.Conv2d(3, 4, 3), "2:4", "[4, 3, 3, 3] has 27 inputs"),
        (nn.Linear(8, 6), "4x4", "[6, 8] has 6 outputs, which do not divide by 4"),
        (nn.Linear(8, 8), "4x3", "[8, 8] has 8 inputs, which do not divide by 3"),
    ],
)
def test_a_shape_that_does_not_divide_is_named_with_what_to_do(module, pattern, says):
    weights = find_weights(module)
    with pytest.raises(ShapeError) as error:
        select_weights(
            weights, {"weight": torch.zeros(weights.tensors[0].shape)}, sparsity=0.5, pattern=pattern
        )
    assert says in str(error.value)
    assert "weight 'weight'" in str(error.value)
    assert "ignore='weight'" in str(error.value)


def test_n_of_m_takes_no_other_sparsity_and_no_scope():
    weights = find_weights(nn.Linear(8, 4))
    scores = {"weight": torch.rand(4, 8)}
    assert select_weights(weights, scores, pattern="2:4", sparsity=0.5).sparsity == 0.5
    for wrong in ({"sparsity": 0.6}, {"scope": "global"}):
        with pytest.raises(SelectionError, match=r"2:4 has the sparsity 0\.5"):
            select_weights(weights, scores, pattern="2:4", **wrong)


def test_inputs_that_nobody_has_named_are_asked_for():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.rand(4, 6, 3))

    weights = find_weights(Own())
    scores = {"table": torch.rand(4, 6, 3)}
    assert select_weights(weights, scores, sparsity=0.5).sparsity == 0.5
    for asked in ({"pattern": "1:2"}, {"pattern": "2x2", "sparsity": 0.5}, {"scope": "row", "sparsity": 0.5}):
        with pytest.raises(SelectionError, match="input_dims"):
            select_weights(weights, scores, **asked)
    told = find_weights(Own(), input_dims={"table": 1})
    keep = select_weights(told, scores, pattern="1:2").masks["table"].keep()
    assert (keep.transpose(0, 2, 1).reshape(-1, 2).sum(axis=1) == 1).all()


def test_a_linear_layer_of_transformers_has_its_inputs_first():
    """Oracle: the mask of the same weight, transposed, in torch's linear layer."""
    from transformers.pytorch_utils import Conv1D

    module, linear = Conv1D(6, 8), nn.Linear(8, 6)
    with torch.no_grad():
        linear.weight.copy_(module.weight.t())
    batch = SimpleNamespace(args=(torch.rand(5, 8),), kwargs={})
    masks = []
    for one in (module, linear):
        weights = find_weights(one)
        norms = input_norms(one, weights, [batch])
        scores = score_weights(one, weights, "wanda", norms=norms)
        masks.append(select_weights(weights, scores, pattern="2:4").masks["weight"].keep())
    assert (masks[1] == masks[0].T).all()


def test_vectors_go_whole():
    weights = find_weights(nn.Linear(8, 4))
    scores = {"weight": torch.arange(32.0).reshape(4, 8)}
    rows = select_weights(weights, scores, pattern="row", sparsity=0.5).masks["weight"].keep()
    assert rows.tolist() == [[False] * 8] * 2 + [[True] * 8] * 2
    columns = select_weights(weights, scores, pattern="column", sparsity=0.75).masks["weight"].keep()
    assert columns.tolist() == [[False] * 6 + [True] * 2] * 4
    pieces = select_weights(weights, scores, pattern="1x4", sparsity=0.25).masks["weight"].keep()
    assert pieces.sum(axis=1).tolist() == [0, 8, 8, 8]
