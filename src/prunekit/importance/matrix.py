"""Which dimensions of a weight are its inputs, for the modules that say so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Matrix:
    """How a tensor is read as a matrix whose columns are its inputs.

    Attributes:
        rows: the dimensions that make the rows (outputs), the last running fastest.
        columns: the dimensions that make the columns (inputs), the last running fastest; of a convolution the
            kernel's positions and then the input channels, so that neighbours are channels of one position.
        groups: into how many blocks of rows that read different inputs a convolution falls.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    groups: int = 1


def is_transposed_linear(owner: nn.Module) -> bool:
    """It is transformers' ``Conv1D``: a linear layer whose weight is ``[in, out]``."""
    return type(owner).__name__ == "Conv1D" and type(owner).__module__.startswith("transformers.")


def matrix_in(owner: nn.Module, dims: int) -> Matrix | None:
    """How a parameter of ``dims`` dimensions in ``owner`` is read; None where ``owner`` does not say."""
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Matrix((0,), (*range(2, dims), 1), owner.groups) if dims > 2 else None
    if isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return Matrix((1,), (*range(2, dims), 0)) if dims > 2 and owner.groups == 1 else None
    if isinstance(owner, nn.Bilinear):
        return Matrix((0,), (1, 2)) if dims == 3 else None
    if is_transposed_linear(owner):
        return Matrix((1,), (0,)) if dims == 2 else None
    if isinstance(
        owner,
        nn.Linear | nn.Embedding | nn.EmbeddingBag | nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention,
    ):
        return Matrix((0,), (1,)) if dims == 2 else None
    return None
