"""``prune``: trace, group, score, plan, remove and prove in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from prunekit.errors import ProofError, SelectionError
from prunekit.graph import Groups, find_groups, trace
from prunekit.importance import check_batches, check_fit, check_seed, collect, needs_of, score
from prunekit.plan import Goal, Limits, PruningPlan, allocate
from prunekit.surgery.proof import Proof, verify
from prunekit.surgery.remove import remove
from prunekit.surgery.soundness import sound
from prunekit.surgery.weight_masks import refuse_masks
from prunekit.types import WIDTHS, Frozen, Granularity
from prunekit.workload import Batch


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` gives.

    Attributes:
        model: the smaller model; the one given is untouched.
        plan: what was removed, and what that changed in cost.
        frozen: what could not be pruned, with operator, source line and reason.
        form: ``own class`` or ``graph module``.
        form_reason: why it has that form.
        proof: the laws that were checked.
        groups: of the model given, for a next plan.
        moved: tensors that have another name than in the model given, as in :class:`Removal`.
        scaled: parameters that took over a factor, as in :class:`Removal`.
    """

    model: nn.Module
    plan: PruningPlan
    frozen: tuple[Frozen, ...]
    form: Literal["own class", "graph module"]
    form_reason: str
    proof: Proof
    groups: Groups
    moved: Mapping[str, str] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()


def prune(
    model: nn.Module,
    args: Tensor | Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    sparsity: float = 0.5,
    criterion: str = "l2",
    fallback: str | None = None,
    goal: Literal["sparsity", "macs", "params"] = "sparsity",
    scope: Literal["uniform", "global"] = "uniform",
    granularity: Granularity | str | Collection[Granularity | str] | None = None,
    only: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    limits: Limits | None = None,
    per_group: Mapping[str, Limits] | None = None,
    calibration: Iterable[Batch] | None = None,
    loss: Callable[[Any, Batch], Tensor] | None = None,
    form: Literal["any", "own class"] = "any",
    release: str | Sequence[str] = (),
    seed: int = 0,
) -> Pruned:
    """Remove units from ``model`` and prove that the smaller model is right; nothing is trained.

    Args:
        model: any ``nn.Module``; it is left as it is.
        args: example inputs, positional; one tensor may be given without a tuple.
        kwargs: example inputs by keyword.
        sparsity: the fraction removed, in ``[0, 1)``: of the units of every prunable group, or, with
            ``goal="macs"`` or ``"params"``, of the whole model's MACs or parameters.
        criterion: a name in ``CRITERIA``; those that need gradients need ``calibration`` and ``loss``.
        fallback: a criterion for groups that the first one says nothing about, such as those without a batch
            norm for ``bn_scale``; without it they are an error.
        goal: what ``sparsity`` is a fraction of.
        scope: ``uniform`` takes the same share of every group, ``global`` ranks all units together.
        granularity: one kind of unit or several; default every width kind, hidden width included; layers,
            experts and channel groups only on request.
        only: one shell-style pattern or several of the groups, tensors or modules to prune.
        ignore: patterns of what to leave alone.
        limits: what no group may be pruned beyond, such as ``Limits(round_to=8)``.
        per_group: limits by pattern, which come before ``limits``: :func:`prunekit.plan.allocate`.
        calibration: batches for criteria that need statistics.
        loss: ``loss(outputs, batch)``, a scalar mean, for criteria that need gradients.
        form: ``own class`` leaves out, and reports, groups that the model's class cannot follow, such as
            query and value dimensions of different sizes; ``any`` gives the graph as a module then.
        release: patterns of outputs that may change their shape: :func:`prunekit.trace`.
        seed: of the random criterion and of the proof's permutations.

    Raises:
        TraceError: torch.export cannot follow the model.
        SelectionError: a pattern that matches nothing, a limit above a width, an unknown granularity or
            criterion, groups that it says nothing about, a seed that is none, nothing to prune.
        GoalError: the goal is out of reach, or rounds to nothing.
        CalibrationError: statistics are needed and cannot be gathered.
        WorkloadError: the model or the example inputs are of the wrong type, or there are no examples.
        ProofError: the removal breaks a law; the model is untouched.
        PlanError: single weights of the model are masked.
    """
    needs = needs_of(criterion, fallback)
    if form not in ("any", "own class"):
        raise SelectionError(f"there is no form {form!r}", expected="'any' or 'own class'", where="form")
    asked = Goal(kind=goal, remove=sparsity)
    check_seed(seed)
    batches = () if calibration is None else calibration
    check_batches(batches)
    kinds = WIDTHS if granularity is None else granularity
    traced = trace(model, args, kwargs, release=release)
    refuse_masks(model)
    found = find_groups(traced).select(granularity=kinds, only=only, ignore=ignore)
    groups = sound(model, found, seed=seed, own_class=form == "own class")
    if not len(groups) and not asked.removes_nothing:
        raise SelectionError(
            f"nothing in {type(model).__name__} can be pruned with these choices",
            expected="at least one prunable group",
            remedy=_why_nothing(groups),
        )
    check_fit(model, groups, criterion, fallback)
    stats = collect(model, batches, groups=groups, needs=needs, loss=loss) if needs else None
    scores = score(model, groups, criterion, stats=stats, fallback=fallback, seed=seed)
    plan = allocate(
        groups, scores, asked, scope=scope, criterion=criterion, limits=limits, per_group=per_group
    )
    done = remove(model, plan, groups)
    if done.form != form != "any":
        raise ProofError(
            f"the class cannot follow this plan: {done.reason}",
            remedy="Use scope='uniform', leave groups out with ignore=, or allow form='any'",
        )
    proof = verify(model, done.model, plan, groups, seed=seed)
    if not proof.passed:
        raise ProofError(
            f"the pruned {type(model).__name__} breaks a law: {proof}",
            remedy="Nothing was changed. Leave the groups named here out with ignore=, and please report it",
        )
    return Pruned(
        done.model, plan, groups.frozen, done.form, done.reason, proof, groups, done.moved, done.scaled
    )


def _why_nothing(groups: Groups) -> str:
    """The first reasons, those of what was asked for before those of what was not."""
    others = sorted(groups.frozen, key=lambda item: item.reason.endswith("was not asked for"))
    reasons = list(dict.fromkeys(f"{item.name}: {item.reason}" for item in others))[:5]
    return "Frozen: " + "; ".join(reasons) if reasons else "The model has no axis that a rule can follow"
