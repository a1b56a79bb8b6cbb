"""Units scored by greedy removal: against brute force on what hooks see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.reconstruction import oracles
from torch import nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError, WorkloadError
from prunekit.graph import find_groups, trace
from prunekit.importance import score
from prunekit.reconstruction import removal_errors
from prunekit.workload import Batch


class TwoReaders(nn.Module):
    """Two layers of different sizes read the same five units."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.left(h), self.right(h)


class Image(nn.Module):
    """A convolution reads five channels at four positions each."""

    def __init__(self):
        super().__init__()
        self.first, self.left = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 2, bias=False)

    def forward(self, x):
        return self.left(torch.tanh(self.first(x)))


NETS = {"two readers": (TwoReaders, (30, 4), ("left", "right")), "image": (Image, (6, 2, 7, 7), ("left",))}


def prepared(name):
    build, shape, readers = NETS[name]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape).double()
    return model, find_groups(trace(model, (x[:2],))), x, readers


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_units_go_as_in_brute_force(name):
    model, groups, x, readers = prepared(name)
    h = torch.tanh(model.first(x))
    rows = h if h.ndim == 2 else F.unfold(h, 2).mT.flatten(0, 1)
    moment = oracles.damped((rows.T @ rows).numpy(), 0.05)
    repeats = rows.shape[1] // 5
    sets = np.arange(rows.shape[1]).reshape(5, repeats)
    weights = [model.get_submodule(reader).weight.flatten(1).numpy() for reader in readers]
    squares = [oracles.cost(w, np.zeros_like(w), (rows.T @ rows).numpy()) for w in weights]
    gone, total = [], []
    for _ in range(5):
        best = {}
        for unit in set(range(5)) - set(gone):
            keep = np.ones(rows.shape[1], bool)
            keep[sets[[*gone, unit]].ravel()] = False
            best[unit] = sum(
                oracles.cost(w, np.array([oracles.best_row(row, moment, keep) for row in w]), moment) / square
                for w, square in zip(weights, squares, strict=True)
            )
        gone.append(min(best, key=best.get))
        total.append(best[gone[-1]])
    (group,) = groups
    stats = removal_errors(model, groups, [Batch(args=(x[:4],)), Batch(args=(x[4:],))], damping=0.05)
    scores = score(model, groups, "removal", stats=stats, normalization="none")[group.name]
    assert np.argsort(scores).tolist() == gone
    np.testing.assert_allclose(np.sort(scores), total, rtol=1e-5)


def test_what_cannot_be_scored_is_named():
    model, groups, x, _ = prepared("two readers")
    with pytest.raises(CalibrationError, match="no calibration"):
        removal_errors(model, groups, [])
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2)).double()
    found = find_groups(trace(grouped, (torch.randn(2, 4, 3, 3).double(),)))
    stats = removal_errors(grouped, found, [Batch(args=(torch.randn(2, 4, 3, 3).double(),))])
    with pytest.raises(SelectionError, match="no linear layer or convolution reads it as a whole"):
        score(grouped, found, "removal", stats=stats)
    with pytest.raises(ShapeError, match="another model"):
        removal_errors(nn.Linear(4, 5), groups, [Batch(args=(x,))])
    with pytest.raises(WorkloadError, match="meta"):
        removal_errors(TwoReaders().to("meta"), groups, [Batch(args=(x,))])
    with pytest.raises(SelectionError, match="dampening"):
        removal_errors(model, groups, [Batch(args=(x,))], damping=-1.0)
