"""One mask: it computes what ``torch.where`` does, changes in place, gathers gradients of what is gone."""

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.surgery import WeightMask, mask_on
from prunekit.surgery.weight_mask import kept_values, packed, unpacked

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1.5, -2.5, torch.nan, torch.inf, -torch.inf, 6e-8]


def on(model):
    return mask_on(model, next(iter(pk.find_weights(model))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_values_are_those_of_where_bit_by_bit(dtype, strided):
    """Oracle: torch.where, compared as integers so that NaN and the sign of zero count."""
    values = torch.tensor([SPECIAL, SPECIAL[::-1]], dtype=dtype)
    keep = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    if strided:
        values, keep = values.t(), keep.t()
    assert bool(keep.any())
    assert not bool(keep.all())
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    ours, wanted = kept_values(values, keep), torch.where(keep, values, 0.0)
    assert ours.dtype == dtype
    assert torch.equal(ours.contiguous().view(integer), wanted.contiguous().view(integer))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_of_every_kind_are_those_of_where():
    """First and second derivative, forward mode and per-example gradients; oracle: torch.where."""
    torch.manual_seed(0)
    weight, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    keep = torch.rand(3, 4) > 0.5

    def loss(masked):
        return lambda weight, x: (masked(weight) @ x).pow(3).sum()

    ours, wanted = loss(lambda w: kept_values(w, keep)), loss(lambda w: torch.where(keep, w, 0.0))
    for derivative in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(derivative(ours)(weight, x[0]), derivative(wanted)(weight, x[0]))
    each = [torch.vmap(torch.func.grad(f), in_dims=(None, 0))(weight, x) for f in (ours, wanted)]
    torch.testing.assert_close(*each)
    gradient = torch.autograd.functional.jacobian(lambda w: ours(w, x[0]), weight)
    assert bool((gradient[~keep] == 0).all())


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 4), (1, 8)])
def test_bits_are_packed_and_unpacked(shape):
    """Oracle: the bits that a plan packs with NumPy."""
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    bits = packed(keep)
    assert bits.numpy().tobytes() == pk.plan.PackedMask.of(keep.numpy()).bits
    assert torch.equal(unpacked(bits, shape), keep)


def test_a_change_keeps_the_tensors_and_is_saved():
    model = pk.mask_weights(nn.Linear(5, 3), sparsity=0.4).model
    mask = on(model)
    buffers = [id(mask.keep), id(mask.packed)]
    keep = torch.arange(15).reshape(3, 5) % 2 == 0
    mask.change(keep)
    assert [id(mask.keep), id(mask.packed)] == buffers
    assert bool((model.weight[~keep] == 0).all())
    other = pk.mask_weights(nn.Linear(5, 3), sparsity=0.4).model
    other.load_state_dict(model.state_dict())
    assert torch.equal(on(other).keep, keep)


def test_the_gradient_of_what_is_gone_is_gathered_and_the_weights_own_stays_as_it_was():
    """Oracle: the gradient with respect to the product of weight and mask, of both passes together."""
    torch.manual_seed(0)
    model = pk.mask_weights(nn.Linear(5, 3, bias=False), sparsity=0.4).model
    mask, stored = on(model), model.parametrizations.weight.original
    x = torch.randn(2, 7, 5)
    leaf = model.weight.detach().clone().requires_grad_()
    for part in x:
        (part @ leaf.t()).pow(2).mean().backward()
    assert mask.gone_gradient() is None
    mask.watch(torch.float32)
    for part in x:
        model(part).pow(2).mean().backward()
    zero = torch.zeros(())
    torch.testing.assert_close(mask.gone_gradient(), torch.where(mask.keep, zero, leaf.grad))
    torch.testing.assert_close(stored.grad, torch.where(mask.keep, leaf.grad, zero))
    model.double()
    assert mask.gone is not None
    assert mask.gone.is_leaf
    mask.watch(None)
    assert mask.gone_gradient() is None
    assert isinstance(mask, WeightMask)
