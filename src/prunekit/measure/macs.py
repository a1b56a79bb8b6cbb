"""How many multiply-accumulates one call of an ATen operator costs, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

Shape = tuple[int, ...]
Formula = Callable[[Sequence[Shape], Shape], int]


def count_macs(
    operator: str, shapes: Sequence[Shape | None], output: Shape, *, equation: str = ""
) -> int | None:
    """Multiply-accumulates of one call of ``operator``; half of what is usually called its FLOPs.

    One multiplication together with the addition into its sum counts as one. Biases, activations and
    normalisation count nothing: the figure is that of the contractions.

    Args:
        operator: ``str(node.target)`` of the training IR, such as ``aten.conv2d.default``.
        shapes: of the tensor arguments in order, lists of tensors one after another; None = absent.
        output: shape of the (first) output.
        equation: of ``aten.einsum.default``, whose cost cannot be told from shapes alone.

    Returns:
        The count, or None where the operator is not known to contract anything.

    Source: the counts agree with ``torch.utils.flop_counter.FlopCounterMode`` / 2
    (https://docs.pytorch.org/docs/stable/utils.html). Deviation: grouped transposed convolutions, where
    the counter forgets the groups; recurrent layers, ``mv``, ``dot`` and ``bilinear``, which it leaves out.
    """
    name = operator.rpartition(".")[0]
    present = [shape for shape in shapes if shape is not None]
    if name == "aten.einsum":
        return einsum_macs(equation, present) if equation else None
    formula = MACS.get(name)
    return None if formula is None else formula(present, output)


def contracts(operator: str) -> bool:
    """Whether ``operator`` is known to contract something."""
    name = operator.rpartition(".")[0]
    return name in MACS or name == "aten.einsum"


def einsum_macs(equation: str, shapes: Sequence[Shape]) -> int:
    """Multiply-accumulates of an einsum that contracts its operands from left to right, as torch does.

    An index that only one operand has and nothing later needs is summed first; then a step costs the
    product of the sizes of all indices of its two operands.

    Args:
        equation: such as ``bij,bkj->bik``; an ellipsis is allowed, and so is an implied output.
        shapes: one per operand.
    """
    terms, output = einsum_terms(equation, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    wanted = set(output)
    total, left = 0, set(terms[0])
    for position, term in enumerate(terms[1:], start=1):
        kept = wanted | {index for later in terms[position + 1 :] for index in later}
        joined = (left & (kept | set(term))) | (set(term) & (kept | left))
        total += prod(sizes[index] for index in joined)
        left = joined & kept
    return total


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """One name per dimension of every operand and of the output.

    The dimensions of an ellipsis are ``...1``, ``...2`` from the right. Where the equation names no output,
    it has the ellipsis and then, in alphabetical order, every index that occurs once.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_names(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    flat = [name for term in terms for name in term]
    hidden = sorted({name for name in flat if len(name) > 1}, key=lambda name: -int(name[3:]))
    if arrow:
        return terms, _names(right, len(right.replace("...", "")) + (len(hidden) if "..." in right else 0))
    return terms, [*hidden, *sorted(name for name in flat if len(name) == 1 and flat.count(name) == 1)]


def _names(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{hidden - place}" for place in range(hidden)), *after]


def _convolution(shapes: Sequence[Shape], output: Shape) -> int:
    # A weight is [out, in / groups, *kernel]: each output value sums over all but the first dimension.
    return prod(output) * prod(shapes[1][1:])


def _transposed_convolution(shapes: Sequence[Shape], output: Shape) -> int:
    # A weight is [in, out / groups, *kernel]: each input value is spread over all but the first.
    return prod(shapes[0]) * prod(shapes[1][1:])


def _any_convolution(shapes: Sequence[Shape], output: Shape) -> int:
    """``aten.convolution`` is either kind; the flag that says which is not a shape.

    Where both fit (as many channels out as in), a stride shrinks what a convolution puts out and what a
    transposed one takes in, so the smaller side counts.
    """
    channels_in, channels_out, first = shapes[0][1], output[1], shapes[1][0]
    if channels_in != channels_out:
        kind = _convolution if first == channels_out else _transposed_convolution
        return kind(shapes, output)
    return min(_convolution(shapes, output), _transposed_convolution(shapes, output))


def _product(shapes: Sequence[Shape], output: Shape) -> int:
    # matmul, mm, bmm, mv, dot: each output value sums over the last dimension of the first operand.
    return prod(output) * shapes[0][-1]


def _product_and_sum(shapes: Sequence[Shape], output: Shape) -> int:
    return _product(shapes[1:], output)


def _sum_of_products(shapes: Sequence[Shape], output: Shape) -> int:
    # addbmm: [b, n, m] and [b, m, p] give [n, p], summed over b as well.
    return prod(shapes[1]) * shapes[2][-1]


def _attention(shapes: Sequence[Shape], output: Shape) -> int:
    # Scores [..., queries, keys] from E, then values of width Ev; a causal mask still computes all of them.
    query, key, value = shapes[:3]
    return prod(output[:-1]) * key[-2] * (query[-1] + value[-1])


def _bilinear(shapes: Sequence[Shape], output: Shape) -> int:
    # x1 @ W: out * in1 * in2, and the result with x2: out * in2.
    _, first, second = shapes[2]
    return prod(output) * (first * second + second)


def _recurrent(shapes: Sequence[Shape], output: Shape) -> int:
    """Every matrix among the parameters meets each of the [steps, batch] positions of the input once."""
    return prod(shapes[0][:2]) * sum(prod(shape) for shape in shapes[1:] if len(shape) == 2)


MACS: Mapping[str, Formula] = {
    "aten.addbmm": _sum_of_products,
    "aten.addmm": _product_and_sum,
    "aten.addmv": _product_and_sum,
    "aten.baddbmm": _product_and_sum,
    "aten.bilinear": _bilinear,
    "aten.bmm": _product,
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
    "aten.conv_transpose1d": _transposed_convolution,
    "aten.conv_transpose2d": _transposed_convolution,
    "aten.conv_transpose3d": _transposed_convolution,
    "aten.convolution": _any_convolution,
    "aten.dot": _product,
    "aten.gru": _recurrent,
    "aten.linear": _product,
    "aten.lstm": _recurrent,
    "aten.matmul": _product,
    "aten.mm": _product,
    "aten.mv": _product,
    "aten.rnn_relu": _recurrent,
    "aten.rnn_tanh": _recurrent,
    "aten.scaled_dot_product_attention": _attention,
}
"""Operator without its overload -> formula over (shapes of the tensor arguments, shape of the output)."""
