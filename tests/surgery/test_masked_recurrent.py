"""Masked recurrent modules, which hold the tensors of their last call."""

import copy

import pytest
import torch
from torch import nn

import prunekit as pk


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_recurrent_module_that_has_run_is_copied_trained_folded_and_masked_again(kind, layers):
    """Oracle: a plain module that gets the same state."""
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4)
    plain = nn.Sequential(kind(4, 6, layers, bidirectional=layers > 1))
    masked = pk.mask_weights(plain, sparsity=0.5).model
    optimizer = torch.optim.Adam(masked.parameters(), 0.05)

    def train(model, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x)[0].square().mean().backward()
            optimizer.step()

    train(masked, 2)
    twin = copy.deepcopy(masked)
    wanted = masked(x)[0]
    assert torch.equal(twin(x)[0], wanted)
    folded, thinner = pk.fold_masks(masked), pk.mask_weights(masked, sparsity=0.8).model
    assert type(folded[0]) is kind
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert thinner(x)[0].shape == wanted.shape
    plain.load_state_dict(folded.state_dict())
    assert torch.equal(plain(x)[0], folded(x)[0])
    torch.testing.assert_close(plain(x)[0], wanted)
    train(masked, 1)
    assert torch.equal(twin(x)[0], wanted), "the copy has weights of its own"
    pk.fold_masks(twin, in_place=True)
    assert torch.equal(copy.deepcopy(twin)(x)[0], plain(x)[0])
