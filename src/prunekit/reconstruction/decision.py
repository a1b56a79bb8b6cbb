"""What a sweep over a model is given to carry out: a choice made on the way, or masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.errors import SelectionError, ShapeError
from prunekit.importance import find_weights
from prunekit.plan import MaskPlan, PackedMask
from prunekit.reconstruction.sparsegpt import Choice
from prunekit.surgery.weight_masks import check_masks_fit


@dataclass(frozen=True, eq=False)
class Decision:
    """What goes.

    Attributes:
        choice: what is to be chosen in each layer's own sweep; None where masks are given.
        masks: by the first name of a parameter.
        names: of the masks as they were given, by the same.
        plan: that has them, or None.
    """

    choice: Choice | None
    masks: Mapping[str, Tensor | PackedMask]
    names: Mapping[str, str]
    plan: MaskPlan | None

    @staticmethod
    def of(
        given: Choice | MaskPlan | Mapping[str, Tensor], model: nn.Module, tied: Mapping[str, str]
    ) -> Decision:
        """Check what was given, before any work.

        Args:
            given: by the caller.
            model: it is for.
            tied: name -> the first name of the same parameter.

        Raises:
            PlanError: a plan of another model.
            SelectionError: something else than a choice, a plan or masks.
        """
        if isinstance(given, Choice):
            return Decision(given, {}, {}, None)
        plan = given if isinstance(given, MaskPlan) else None
        if plan is not None:
            check_masks_fit(model, plan)
        masks = given.masks if isinstance(given, MaskPlan) else given
        are_masks = isinstance(masks, Mapping) and all(
            isinstance(item, Tensor | PackedMask) for item in masks.values()
        )
        if not are_masks:
            raise SelectionError(
                f"It is {given!r}"
                if isinstance(given, str | int | float)
                else f"It is a {type(given).__name__}",
                expected="Choice(sparsity=0.5), Choice(pattern='2:4'), a mask plan or masks by parameter",
                where="choice",
            )
        names = {tied.get(name, name): name for name in masks}
        return Decision(None, {first: masks[name] for first, name in names.items()}, names, plan)

    def check_masks(self, shapes: Mapping[str, torch.Size], reason: Callable[[str], str]) -> None:
        """Every mask fits a weight that is swept.

        Args:
            shapes: of the weights that are swept, by parameter.
            reason: why another one is not.

        Raises:
            SelectionError: a mask for what is no layer's weight.
            ShapeError: a mask of another shape or dtype.
        """
        for first, name in self.names.items():
            if first not in shapes:
                raise SelectionError(
                    f"Its mask cannot be reconstructed: {reason(first)}",
                    expected="the weight of a linear layer or convolution",
                    where=name,
                    remedy="Zero it by itself, and give the other masks",
                )
            mask, shape = self.mask(first), shapes[first]
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ShapeError(
                    f"Its mask has the shape {list(mask.shape)} and the dtype {mask.dtype}",
                    expected=f"{list(shape)} of torch.bool",
                    where=name,
                )

    def mask(self, first: str) -> Tensor:
        """The mask of a parameter, bool, True = keep."""
        mask = self.masks[first]
        return torch.from_numpy(mask.keep()) if isinstance(mask, PackedMask) else mask

    def planned(self, model: nn.Module, masks: Mapping[str, PackedMask]) -> MaskPlan:
        """The plan that was given, or one of the masks that came out."""
        if self.plan is not None:
            return self.plan
        count = sum(mask.count for mask in masks.values())
        sparsity = 1 - sum(mask.kept for mask in masks.values()) / count
        n_of_m = None if self.choice is None else self.choice.n_of_m
        return MaskPlan(
            masks,
            fingerprint=find_weights(model).fingerprint,
            pattern="element" if self.choice is None else str(self.choice.pattern),
            scope="" if self.choice is None else "tensor" if n_of_m is None else "n:m",
            criterion="" if self.choice is None else "sparsegpt",
            asked=sparsity if self.choice is None or self.choice.sparsity is None else self.choice.sparsity,
        )
