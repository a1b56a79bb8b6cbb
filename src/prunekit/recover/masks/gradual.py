"""Masks on single weights that come, change and go while a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import PlanError, SelectionError, UsageError
from prunekit.importance import (
    Weights,
    WeightScores,
    check_seed,
    every_parameter,
    find_weights,
    score_weights,
    stored_parameter,
    weight_criterion,
)
from prunekit.plan import (
    Asked,
    MaskPlan,
    NOfM,
    PackedMask,
    Pattern,
    Scope,
    check_selection,
    choose_weights,
)
from prunekit.recover.companion import step_of
from prunekit.recover.masks.phases import Phases
from prunekit.recover.masks.regrowth import REGROWTH, Regrowth, exchange, summed_over_ranks
from prunekit.recover.schedules import Curve
from prunekit.surgery import WeightMask, attach_masks, mask_on

Criterion = str | Callable[[nn.Module, Weights], WeightScores]
"""A criterion of single weights by name, or a function that scores them as they are now."""

EXCHANGED = ("tensor", "row", "module", "global", "erk", "n:m")
"""Scopes in which weights can be exchanged: how much each pool keeps does not depend on the scores."""


class GradualMasks:
    """Masks on the single weights of a model while it trains: one ``step()`` after every optimizer step.

    The sparsity after step ``t`` is ``s(t) = initial + (sparsity - initial) * curve((t - t0) / (t1 - t0))``
    with ``t0 = begin * steps`` and ``t1 = end * steps``; masks change at ``t0 + n * every`` and at ``t1``,
    and counts are those of :func:`prunekit.select_weights` for ``s(t)``: exact, ties by index.

    The model is masked in place: parameters and masks stay the same objects, so that optimizers, moving
    averages, ``DistributedDataParallel`` and compiled graphs go on. Masks are part of the model's
    ``state_dict``. What goes is set to zero, and so is what the optimizer keeps for it; what comes back
    starts at zero. From equal weights all processes choose the same. Steps beyond ``steps`` change nothing.

    Law: where the states of model, optimizer and this are loaded into others that were made by the same
    arguments, at whatever step, training goes on bit by bit as if it had not been interrupted.

    Args:
        model: masked in place; masks that it has already stay until the first change.
        sparsity: the fraction that is gone from ``t1`` on, in [0, 1); a pattern n:m has its own.
        steps: optimizer steps of the whole training, >= 1.
        pattern: as in :func:`prunekit.select_weights`; n:m begins with m:m and takes one more of each m at a
            time, never more than ``s(t)``.
        criterion: a key of :data:`prunekit.importance.WEIGHT_CRITERIA` that needs no calibration, or a
            function of the model and the weights that gives scores >= 0, higher = keep. Weights are scored as
            they are at the change.
        scope: as in :func:`prunekit.select_weights`.
        weights: from :func:`prunekit.find_weights`; default all that it finds.
        curve: a name in :data:`SCHEDULES`, or the pairs of :func:`prunekit.recover.steps`.
        initial: the sparsity at ``t0``, from 0 to ``sparsity``; where ``begin`` is 0, at once. None = that of
            the masks that are there, 0 without. Below that, zeros come back.
        begin: share of the training before the first change, in [0, 1).
        end: share of the training at which ``sparsity`` is reached, above ``begin``, at most 1.
        every: optimizer steps from one change to the next, >= 1.
        lift: share of the training at which the masks are lifted and all weights train again, those that
            were gone from zero (dense-sparse-dense); None = never.
        regrow: a key of :data:`REGROWTH` or a value: what comes back.
        optimizer: whose state is cleared where weights go or come back; None = none, until :meth:`use`.
        seed: of draws, >= 0.

    Raises:
        UsageError: a number or name that is none of these.
        SelectionError: nothing to mask, or an unknown criterion, pattern or scope.
        ShapeError: a parameter that the pattern does not divide.
        PlanError: weights of another model, or a parameter that cannot be masked.

    Source: Zhu & Gupta, 2017, "To prune, or not to prune", eq. 1, https://arxiv.org/abs/1710.01878;
    deviation: what is masked is zero and stays gone, where their masks are made anew from the old values.
    Evci et al., 2020, "Rigging the Lottery", https://arxiv.org/abs/1911.11134; deviation: the step before
    a change is made like any other. Han et al., 2017, "DSD: Dense-Sparse-Dense Training for Deep Neural
    Networks", algorithm 1, https://arxiv.org/abs/1607.04381.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        sparsity: float | None = None,
        pattern: Pattern | str = "element",
        criterion: Criterion = "magnitude",
        scope: Scope | str | None = None,
        weights: Weights | None = None,
        curve: Curve = "cubic",
        initial: float | None = None,
        begin: float = 0.0,
        end: float = 0.8,
        every: int = 100,
        lift: float | None = None,
        regrow: str | Regrowth = "none",
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        self._model, self._criterion = model, criterion
        self._weights = find_weights(model) if weights is None else weights
        self._regrow, self._seed, self._step, self._watching = _rule(regrow), seed, 0, False
        check_seed(seed)
        name = _criterion_name(criterion)
        self._asked = check_selection(
            self._weights,
            sparsity=sparsity,
            pattern=pattern,
            scope=scope,
            criterion=name if isinstance(criterion, str) else "",
        )
        _check_exchange(self._regrow, self._asked)
        _check_found_on(model, self._weights)
        initial = _sparsity_now(model, self._weights) if initial is None else initial
        timing = {"steps": steps, "begin": begin, "end": end, "every": every, "lift": lift}
        self._phases = Phases.of(**timing, initial=initial, final=self._asked.sparsity, curve=curve)
        self._made_by = {
            "model": self._weights.fingerprint,
            "weights": [weight.name for weight in self._weights],
            **timing,
            "sparsity": self._asked.sparsity,
            "initial": initial,
            "curve": curve if isinstance(curve, str) else [list(pair) for pair in curve],
            "pattern": str(self._asked.pattern),
            "scope": self._asked.scope_name,
            "criterion": name,
            "regrow": str(self._regrow),
            "seed": seed,
        }
        self._parameters = {weight.name: stored_parameter(model, weight) for weight in self._weights}
        self.use(*(() if optimizer is None else (optimizer,)))
        self._masks = _attached(model, self._weights)
        if self._phases.is_due(0) and self._phases.sparsity(0) > 0:
            self._change()
        self._watch()

    @property
    def sparsity(self) -> float:
        """The fraction of the weights that is gone now, as counted."""
        kept = sum(int(mask.keep.sum()) for mask in self._masks.values())
        return 1 - kept / self._weights.count

    @property
    def settled(self) -> bool:
        """The sparsity is the one at the end: validations before that say nothing about the result."""
        return self.steps_left == 0

    @property
    def steps_left(self) -> int:
        """Optimizer steps until it is settled."""
        return max(0, self._phases.settled - self._step)

    def use(self, *optimizers: torch.optim.Optimizer) -> None:
        """Let the state of these be cleared from now on, in place of those given before.

        Raises:
            UsageError: masked parameters take gradients, and none of these holds one.
        """
        _check_optimizers(optimizers, self._parameters.values())
        self._optimizers = optimizers

    def step(self) -> None:
        """An optimizer step was made; change the masks where that is due.

        Raises:
            TrainingError: the gradients of what is gone are needed, and no backward pass was made.
            CalibrationError: weights or scores hold NaN or infinity.
            PlanError: the masks are no longer on the model.
        """
        self._step += 1
        if self._phases.is_due(self._step):
            self._check_attached()
            self._change()
        self._watch()

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and by which arguments it was made; masks are in the model's own state."""
        return {"step": self._step, **self._made_by}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Go on where another one was, made by the same arguments on a model of the same form.

        Raises:
            UsageError: it was made by other arguments.
        """
        self._step = step_of(state_dict, self._made_by, where="GradualMasks")
        self._watch(anew=True)

    def _change(self) -> None:
        """Make the masks those of the present step."""
        old = {name: mask.keep.clone() for name, mask in self._masks.items()}
        lifted = self._phases.is_lifted(self._step)
        new = {name: torch.ones_like(keep) for name, keep in old.items()} if lifted else self._chosen()
        held = not self._regrow.soft or self._step >= self._phases.last
        with torch.no_grad():
            for name, mask in self._masks.items():
                zero = ~(old[name] & new[name])
                self._parameters[name].masked_fill_(zero, 0.0)
                if held:
                    mask.change(new[name])
                    for optimizer in self._optimizers:
                        _clear_state(optimizer, self._parameters[name], zero)

    def _chosen(self) -> dict[str, Tensor]:
        """By parameter, what is to be kept after this step."""
        sparsity, scores = self._phases.sparsity(self._step), self._scores()
        share = self._exchanged(self._step)
        growth = self._growth() if share else None
        if growth is None:
            return self._choose(scores, sparsity)
        return exchange(self._choose, scores, growth, sparsity=sparsity, share=share)

    def _exchanged(self, step: int) -> float:
        """The share of the kept weights that is exchanged after ``step`` steps."""
        if step == 0 or not self._phases.is_due(step):
            return 0.0
        return self._regrow.exchanged(step / self._phases.last)

    def _scores(self) -> dict[str, Tensor]:
        """Scores of the weights as they are; 0 where a weight is gone, above 0 elsewhere."""
        if isinstance(self._criterion, str):
            given: WeightScores = score_weights(self._model, self._weights, self._criterion, seed=self._seed)
        else:
            given = self._criterion(self._model, self._weights)
        scores = {}
        for name, mask in self._masks.items():
            values = given[name].detach() if name in given else None
            if values is None or values.shape != mask.keep.shape or bool((values < 0).any()):
                raise SelectionError(
                    "Its scores are missing, of another shape, or below 0",
                    expected="scores >= 0 in its shape",
                    where=f"weight '{name}'",
                )
            scores[name] = torch.where(mask.keep, values.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
        return scores

    def _growth(self) -> dict[str, Tensor] | None:
        """By parameter, how much each weight is wanted back; None where a gradient is no number."""
        if self._regrow.by == "draw":
            seed = self._seed * 1_000_003 + self._step
            return score_weights(self._model, self._weights, "random", seed=seed)
        gathered = {name: mask.gone_gradient() for name, mask in self._masks.items()}
        growth = summed_over_ranks(gathered, like=self._parameters)
        finite = all(bool(torch.isfinite(values).all()) for values in growth.values())
        return growth if finite else None

    def _choose(self, scores: WeightScores, sparsity: float) -> dict[str, Tensor]:
        pattern = self._asked.pattern
        if not isinstance(pattern, NOfM):
            return choose_weights(self._weights, scores, replace(self._asked, sparsity=sparsity))
        n = max(1, pattern.m - math.floor(sparsity * pattern.m + 1e-9))
        if n == pattern.m:
            return {name: torch.ones_like(mask.keep) for name, mask in self._masks.items()}
        return choose_weights(self._weights, scores, replace(self._asked, pattern=NOfM(n, pattern.m)))

    def _watch(self, *, anew: bool = False) -> None:
        """Gather the gradients of what is gone in the step before they are needed, and in no other."""
        wanted = self._regrow.by == "gradient" and self._exchanged(self._step + 1) > 0
        if wanted or anew or self._watching:
            for name, mask in self._masks.items():
                wide = torch.promote_types(self._parameters[name].dtype, torch.float32)
                mask.watch(wide if wanted else None)
        self._watching = wanted

    def _check_attached(self) -> None:
        for weight in self._weights:
            if mask_on(self._model, weight) is not self._masks[weight.name]:
                raise PlanError(
                    "Its mask is no longer on the model",
                    where=f"weight '{weight.name}'",
                    remedy="Fold the masks only after the last step, or make new gradual masks",
                )


def _rule(given: str | Regrowth) -> Regrowth:
    if isinstance(given, Regrowth):
        return given
    if given not in REGROWTH:
        raise UsageError(
            f"regrow is {given!r}", expected=f"one of {', '.join(REGROWTH)}", where="gradual masks"
        )
    return REGROWTH[given]


def _criterion_name(criterion: Criterion) -> str:
    if callable(criterion):
        return getattr(criterion, "__qualname__", type(criterion).__name__)
    if needs := weight_criterion(criterion).needs:
        raise SelectionError(
            f"The criterion '{criterion}' needs {needs}",
            expected="a criterion that needs no calibration, or a function that scores the weights",
            where="criterion",
            remedy="Give criterion=lambda model, weights: score_weights(model, weights, "
            f"'{criterion}', {needs}=...)",
        )
    return criterion


def _check_found_on(model: nn.Module, weights: Weights) -> None:
    if every_parameter(model).fingerprint != weights.fingerprint:
        raise PlanError(
            "The weights were found on another model",
            expected="find_weights() of this very model",
            where="weights",
        )


def _check_exchange(rule: Regrowth, asked: Asked) -> None:
    if not rule.by:
        return
    if asked.scope_name not in EXCHANGED:
        raise SelectionError(
            f"The scope '{asked.scope_name}' divides the weights anew by their scores",
            expected=f"one of {', '.join(EXCHANGED)} where weights are exchanged",
            where="scope",
        )
    if isinstance(asked.pattern, NOfM) and rule.share * asked.pattern.n < 1:
        raise SelectionError(
            f"A share of {rule.share} of {asked.pattern.n} weights is less than one weight",
            expected=f"a share of at least {1 / asked.pattern.n:.3g} for the pattern {asked.pattern}",
            where="regrow",
            remedy="Give regrow=dataclasses.replace(REGROWTH[...], share=...)",
        )


def _check_optimizers(optimizers: Sequence[torch.optim.Optimizer], masked: Iterable[Tensor]) -> None:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    trained = [id(parameter) for parameter in masked if parameter.requires_grad]
    if optimizers and trained and held.isdisjoint(trained):
        raise UsageError(
            f"The {' and the '.join(type(each).__name__ for each in optimizers)} holds none of the "
            "parameters that are masked",
            expected="the optimizer of this very model",
            where="optimizer",
        )


def _attached(model: nn.Module, weights: Weights) -> dict[str, WeightMask]:
    """By parameter its mask on the model; one that keeps everything where there was none."""
    bare = [weight for weight in weights if mask_on(model, weight) is None]
    whole = {weight.name: PackedMask.of(np.ones(weight.shape, dtype=np.bool_)) for weight in bare}
    attach_masks(model, MaskPlan(whole, weights.fingerprint, "element", "tensor", "", 0.0), in_place=True)
    masks = {weight.name: mask_on(model, weight) for weight in weights}
    return {name: mask for name, mask in masks.items() if mask is not None}


def _sparsity_now(model: nn.Module, weights: Weights) -> float:
    masks = [mask_on(model, weight) for weight in weights]
    return sum(int((~mask.keep).sum()) for mask in masks if mask is not None) / weights.count


def _clear_state(optimizer: torch.optim.Optimizer, parameter: Tensor, where: Tensor) -> None:
    """Set to zero what the optimizer keeps for weights that went or come back."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where, 0.0)
