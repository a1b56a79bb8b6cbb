"""A pruned model that computes the right numbers and still could not take the dense one's place."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.surgery import verify

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return {"scores": self.last(torch.relu(self.first(x)))}


class Renamed(Net):
    def forward(self, x):
        return {"logits": super().forward(x)["scores"]}


class Listed(Net):
    def forward(self, x):
        return [super().forward(x)["scores"]]


class Untrainable(Net):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not in training")
        return super().forward(x)


class Unsaved(Net):
    """Leaves a parameter out of its state."""

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        del state["last.bias"]
        return state


class Rescaled(Net):
    """Loads something else than it saved."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        state_dict = {name: 2 * tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Net, ""),
        (Renamed, r"the output\['scores'\] is absent"),
        (Listed, "the output is list and was dict"),
        (Untrainable, "does not get through a step of training"),
        (Unsaved, "does not load its state again: RuntimeError"),
        (Rescaled, ""),
    ],
)
def test_the_use_law(kind, reason):
    torch.manual_seed(0)
    pruned = pk.prune(Net().eval(), (X,))
    small = copy.deepcopy(pruned.model)
    small.__class__ = kind
    torch.manual_seed(0)
    proof = verify(Net().eval(), small, pruned.plan, pruned.groups)
    use = {law.law: law for law in proof.laws}["use"]
    assert use.passed == (kind is Net)
    assert (use.max_relative_error > 0) == (kind in (Unsaved, Rescaled))
    assert re.search(reason, use.note)


def test_a_model_that_never_trained_need_not_train():
    torch.manual_seed(0)
    pruned = pk.prune(Untrainable().eval(), (X,))
    assert pruned.proof.passed


def test_a_model_that_is_not_saved_by_its_state_need_not_be():
    torch.manual_seed(0)
    assert pk.prune(Rescaled().eval(), (X,)).proof.passed
