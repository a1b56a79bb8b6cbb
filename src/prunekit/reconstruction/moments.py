"""Sums over what a layer reads and how its outputs differ, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.errors import CalibrationError

PART = 192
"""Into parts of about so many the inputs of a wide layer are cut, so that nearly half of the products is left
out."""

ROWS = 4096
"""Rows whose products are added up in their own dtype before they go to the sums in float64."""


CONSTANT = 1e-12
"""Share of its second moment below which the variance of an input is taken for rounding."""


def centred(moment: Tensor, means: Tensor, count: float) -> Tensor:
    """``H - n m m.T``, second moments about the means; zero for inputs that are constant but for rounding.

    Args:
        moment: ``H``, ``[in, in]`` float64.
        means: ``m``, ``[in]``.
        count: ``n``, rows.
    """
    found = moment - count * torch.outer(means, means)
    constant = found.diagonal() <= CONSTANT * moment.diagonal()
    found[constant] = 0.0
    found[:, constant] = 0.0
    return found


class Gram:
    """``X.T X`` and the sums of ``X``, per group of channels.

    Args:
        where: the layer's parameter, for messages.
        products: dtype in which up to :data:`ROWS` rows are multiplied; their sums are float64.

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
        self._recent: Tensor | None = None
        self._recent_rows = 0

    def add(self, rows: Tensor) -> Tensor:
        """Take in ``[groups, n, in]``; gives them in the dtype of the products."""
        self.products = torch.promote_types(rows.dtype, self.products)
        rows = rows.to(self.products)
        groups, number, inputs = rows.shape
        if self._gram is None or self._sums is None:
            self._gram = torch.zeros(groups, inputs, inputs, dtype=torch.float64, device=rows.device)
            self._sums = torch.zeros(groups, inputs, dtype=torch.float64, device=rows.device)
        if self.products != torch.float64 and (self._recent is None or self._recent.dtype != rows.dtype):
            self._flush()
            self._recent = torch.zeros_like(self._gram, dtype=rows.dtype)
        into = self._gram if self.products == torch.float64 or self._recent is None else self._recent
        self.count += number
        for some in rows.split(ROWS, 1):
            self._sums += some.sum(1)
            for start, stop in _parts(inputs):
                into[:, start:stop, :stop].baddbmm_(some[:, :, start:stop].mT, some[:, :, :stop])
            self._recent_rows += some.shape[1]
            if self._recent_rows >= ROWS:
                self._flush()
        return rows

    def _flush(self) -> None:
        if self._recent is not None and self._gram is not None:
            self._gram += self._recent
            self._recent.zero_()
        self._recent_rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(held.nbytes for held in (self._gram, self._recent) if held is not None)

    def finish(self) -> tuple[Tensor, Tensor]:
        """``[groups, in, in]`` and the means ``[groups, in]``, both float64 and not to be changed.

        Raises:
            CalibrationError: NaN or infinity among the inputs, or no inputs.
        """
        self._flush()
        self._recent = None
        if self._gram is None or self._sums is None:
            raise CalibrationError("It read nothing on the calibration data", where=self.where)
        for start, stop in _parts(self._gram.shape[1]):
            square = self._gram[:, start:stop, start:stop]
            square.copy_(square.tril() + square.tril(-1).mT)
            self._gram[:, start:stop, stop:] = self._gram[:, stop:, start:stop].mT
        check_finite(self._gram, self.where, "inputs")
        return self._gram, self._sums / max(1, self.count)

    def release(self) -> Tensor:
        """``[groups, in, in]``, not held here any more."""
        assert self._gram is not None
        gram, self._gram = self._gram, None
        return gram


def _parts(inputs: int) -> list[tuple[int, int]]:
    """Where each part begins and ends; all but the last of one size."""
    step = -(-inputs // max(1, round(inputs / PART)))
    return [(start, min(start + step, inputs)) for start in range(0, inputs, max(1, step))]


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


def check_new(value: Tensor, where: str) -> None:
    """Refuse weights that are no numbers or too large for the model's dtype.

    Raises:
        CalibrationError: there are some.
    """
    if not torch.isfinite(value).all():
        raise CalibrationError(
            f"Its new weights hold NaN or infinity in {value.dtype}",
            where=where,
            remedy="Dampen more, or reconstruct the model in float32",
        )
