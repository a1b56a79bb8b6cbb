"""Sums over what a layer reads and how its outputs differ, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import CalibrationError

PARTS = 4
"""Into how many parts the inputs of a wide layer are cut, so that half of the products is left out."""

WIDE = 256
"""Inputs from which on that pays."""


class Gram:
    """``X.T X`` and the sums of ``X``, per group of channels.

    Args:
        where: the layer's parameter, for messages.
        products: dtype in which some rows at a time are multiplied; their sums are float64.

    Attributes:
        count: rows so far.
        products: that dtype, or the inputs' own where that is wider.
    """

    def __init__(self, where: str, products: torch.dtype) -> None:
        self.where = where
        self.count = 0
        self.products = products
        self._gram: Tensor | None = None
        self._sums: Tensor | None = None

    def add(self, rows: Tensor) -> Tensor:
        """Take in ``[groups, n, in]``; gives them in the dtype of the products."""
        self.products = torch.promote_types(rows.dtype, self.products)
        rows = rows.to(self.products)
        groups, number, inputs = rows.shape
        if self._gram is None or self._sums is None:
            self._gram = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=rows.device)
            self._sums = torch.zeros(groups, inputs, dtype=torch.float64, device=rows.device)
        self._sums += rows.sum(1, dtype=torch.float64)
        self.count += number
        step = inputs if inputs < WIDE else -(-inputs // PARTS)
        for start in range(0, inputs, step):
            stop = min(start + step, inputs)
            self._gram[:, start:stop, :stop] += rows[:, :, start:stop].mT @ rows[:, :, :stop]
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self._gram is None else self._gram.nbytes

    def finish(self) -> tuple[Tensor, Tensor]:
        """``[groups, in, in]`` and the means ``[groups, in]``.

        Raises:
            CalibrationError: NaN or infinity among the inputs, or no inputs.
        """
        if self._gram is None or self._sums is None:
            raise CalibrationError("It read nothing on the calibration data", where=self.where)
        check_finite(self._gram, self.where, "inputs")
        lower = self._gram.tril()
        return lower + self._gram.tril(-1).mT, self._sums / max(1, self.count)


class Residual:
    """``X.T E``, the sums of ``E`` and the squares of ``E`` and of the outputs wanted.

    ``E`` is what is wanted less what the layer gives: ``Y - X W.T - b``.

    Args:
        matrix: ``W``, ``[groups, out, in]`` float64.
        bias: ``[groups, out]`` float64 or None.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        groups, out, inputs = matrix.shape
        self._matrix, self._bias = matrix, bias
        self.cross = torch.zeros(groups, inputs, out, dtype=torch.float64, device=matrix.device)
        self.sums = torch.zeros(groups, out, dtype=torch.float64, device=matrix.device)
        self.squares = torch.zeros(groups, dtype=torch.float64, device=matrix.device)
        self.wanted = 0.0

    def add(self, rows: Tensor, outputs: Tensor) -> None:
        """Take in ``[groups, n, in]`` and ``[groups, n, out]``."""
        rows, outputs = rows.double(), outputs.double()
        residual = outputs - rows @ self._matrix.mT
        if self._bias is not None:
            residual -= self._bias[:, None]
        self.cross += rows.mT @ residual
        self.sums += residual.sum(1)
        self.squares += residual.square().sum((1, 2))
        self.wanted += float(outputs.square().sum())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.cross.nbytes


def check_finite(value: Tensor, where: str, what: str) -> None:
    """Refuse NaN and infinity, and name the layer.

    Raises:
        CalibrationError: there are some.
    """
    if not torch.isfinite(value).all():
        raise CalibrationError(
            f"Its {what} on the calibration data hold NaN or infinity",
            where=where,
            remedy="Look for NaN in the data or the weights, or calibrate in float32",
        )
