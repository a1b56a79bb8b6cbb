"""The oracle is ``torch.utils.flop_counter.FlopCounterMode`` on the running model, halved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prunekit.measure import MACS, count_macs, einsum_macs


class Residual(nn.Module):
    """Plain, strided, dilated, grouped, depthwise and 'same' convolutions around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
        self.back = nn.Conv2d(12, 8, 1)
        self.same = nn.Conv2d(8, 8, 5, padding="same")
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.same(self.back(self.depthwise(self.grouped(x))))
        return self.head(x.mean((2, 3)))


class OtherDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv1d(4, 6, 3), nn.Conv3d(2, 3, 2)
        self.up1 = nn.ConvTranspose1d(6, 5, 4, stride=2)
        self.up2 = nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1)
        self.up3 = nn.ConvTranspose3d(3, 2, 2)

    def forward(self, x, y, z):
        return self.up1(self.one(x)).sum() + self.up3(self.three(y)).sum() + self.up2(z).sum()


class Products(nn.Module):
    def forward(self, a, b, m):
        batched = torch.bmm(a, b)
        return (
            torch.baddbmm(batched, a, b),
            torch.addmm(m, m, m),
            torch.mm(m, m),
            torch.matmul(a, m),
            torch.matmul(a.unsqueeze(1), b.unsqueeze(1)),
        )


class Einsums(nn.Module):
    def forward(self, a, b, m):
        return (
            torch.einsum("bij,bjk->bik", a, b),
            torch.einsum("bij,bjk,kl->bil", a, b, m),
            torch.einsum("...ij,jk->...ik", a, m),
            torch.einsum("ij,jk->k", m, m),
            torch.einsum("bij,jk", a, m),
        )


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)


MODELS = {
    "residual": (Residual, ((2, 3, 12, 12),)),
    "other dimensions": (OtherDimensions, ((2, 4, 9), (2, 2, 5, 5, 5), (2, 4, 6, 6))),
    "products": (Products, ((2, 4, 4), (2, 4, 4), (4, 4))),
    "einsums": (Einsums, ((2, 3, 4), (2, 4, 4), (4, 4))),
    "attention": (Attention, ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6))),
    "transformer": (_encoder, ((2, 6, 16),)),
}


def _count_graph(model: nn.Module, args: tuple) -> int:
    program = torch.export.export(model, args, strict=False)
    return sum(
        _count(node) or 0 for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)
    )


def _count(node: torch.fx.Node) -> int | None:
    arguments = [one for one in tree_leaves(node.args) if one is None or isinstance(one, torch.fx.Node)]
    output = tree_leaves(node.meta["val"])[0]
    return count_macs(
        str(node.target),
        [None if one is None else tuple(one.meta["val"].shape) for one in arguments],
        tuple(output.shape) if isinstance(output, torch.Tensor) else (),
        equation=node.args[0] if str(node.target) == "aten.einsum.default" else "",
    )


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_flop_counter(name):
    build, shapes = MODELS[name]
    torch.manual_seed(0)
    model, args = build().eval(), tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train(name == "transformer")  # In eval mode it runs as one fused kernel, which is not counted.
        model(*args)
    model.eval()
    with torch.no_grad():
        counted = _count_graph(model, args)
    assert counted > 0
    assert counted * 2 == counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
def test_recurrent_layers_multiply_every_weight_at_every_step():
    lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3, batch_first=True)
    matrices = sum(weight.numel() for name, weight in lstm.named_parameters() if "weight" in name)
    assert _count_graph(lstm.eval(), (torch.randn(2, 7, 4),)) == 2 * 7 * matrices


@pytest.mark.parametrize(
    ("operator", "shapes", "output", "macs"),
    [
        # A grouped transposed convolution: each of 4 * 5 * 5 inputs meets [3, 2, 2] values.
        ("aten.conv_transpose2d.input", [(1, 4, 5, 5), (4, 3, 2, 2), None], (1, 6, 6, 6), 4 * 25 * 12),
        ("aten.convolution.default", [(1, 4, 5, 5), (4, 3, 2, 2), None], (1, 6, 6, 6), 4 * 25 * 12),
        ("aten.convolution.default", [(1, 4, 5, 5), (6, 4, 3, 3), (6,)], (1, 6, 3, 3), 6 * 9 * 36),
        ("aten.convolution.default", [(1, 4, 8, 8), (4, 4, 2, 2), None], (1, 4, 4, 4), 4 * 16 * 16),
        ("aten.convolution.default", [(1, 4, 4, 4), (4, 4, 2, 2), None], (1, 4, 8, 8), 4 * 16 * 16),
        ("aten.dot.default", [(7,), (7,)], (), 7),
        ("aten.mv.default", [(3, 7), (7,)], (3,), 21),
        ("aten.addmv.default", [(3,), (3, 7), (7,)], (3,), 21),
        ("aten.addbmm.default", [(3, 5), (2, 3, 7), (2, 7, 5)], (3, 5), 2 * 3 * 7 * 5),
        ("aten.bilinear.default", [(2, 3), (2, 4), (5, 3, 4), None], (2, 5), 2 * 5 * (3 * 4 + 4)),
        # Grouped-query attention: 6 query heads share 2 heads of keys.
        (
            "aten.scaled_dot_product_attention.default",
            [(1, 6, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8)],
            (1, 6, 5, 8),
            6 * 5 * 7 * 16,
        ),
    ],
)
def test_counts_are_the_closed_forms(operator, shapes, output, macs):
    assert count_macs(operator, shapes, output) == macs


def test_an_operator_that_contracts_nothing_is_not_counted():
    assert count_macs("aten.relu.default", [(2, 3)], (2, 3)) is None
    assert count_macs("aten.linear_like.default", [(2, 3)], (2, 3)) is None
    assert count_macs("aten.einsum.default", [(2, 3), (3, 4)], (2, 4)) is None


@pytest.mark.parametrize("operator", sorted(MACS))
def test_the_table_names_operators_that_exist(operator):
    namespace, name = operator.split(".")
    assert hasattr(getattr(torch.ops, namespace), name)


def test_einsum_with_an_ellipsis_aligns_it_from_the_right():
    assert einsum_macs("...ij,...jk->...ik", [(5, 2, 3, 4), (2, 4, 6)]) == 5 * 2 * 3 * 4 * 6
