"""Which module of the student is compared with which of the teacher, and index by index with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from prunekit.errors import SelectionError, ShapeError
from prunekit.recover.distillation.lineage import Kept, Lineage
from prunekit.recover.distillation.reading import ATTENTION, HIDDEN
from prunekit.recover.distillation.settings import DistillationSettings, Modules


@dataclass(frozen=True)
class Pair:
    """A module of the student and the one of the teacher that it is compared with.

    Attributes:
        kind: ``hidden`` or ``attention``.
        student: path of the student's module.
        teacher: path of the teacher's.
    """

    kind: str
    student: str
    teacher: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.kind} of module {self.student!r} and the teacher's {self.teacher!r}"


def find_pairs(
    settings: DistillationSettings, teacher: nn.Module, student: nn.Module, lineage: Lineage | None
) -> list[Pair]:
    """What the hidden and the attention term compare, in the order of the student's modules.

    1. A dict says it itself.
    2. Patterns are held against the names of the student's modules, part by part, so that ``layer.*`` means
       the layers and not what is in them; each is compared with the module of the
       teacher that it was, by the lineage, or without one with that of the same name.
    3. Without patterns, the lineage knows the layers, or the modules that compute attention.

    Raises:
        SelectionError: nothing matches, or it cannot be told which module of the teacher is meant.
    """
    pairs = []
    for kind, weight, modules in (
        (HIDDEN, settings.hidden, settings.hidden_modules),
        (ATTENTION, settings.attention, settings.attention_modules),
    ):
        if weight:
            pairs += _pairs(kind, modules, teacher, student, lineage)
    return pairs


def _pairs(
    kind: str, modules: Modules, teacher: nn.Module, student: nn.Module, lineage: Lineage | None
) -> list[Pair]:
    if isinstance(modules, Mapping):
        return [Pair(kind, ours, theirs) for ours, theirs in modules.items()]
    if not modules and lineage is None:
        raise SelectionError(
            "no modules are named, and there is no lineage that knows them",
            expected=f"names or patterns of modules in {kind}_modules, such as 'encoder.layer.*'",
            where="distillation settings",
            remedy="Name them, or give lineage=Lineage.of(removal, plan, groups)",
        )
    names = [name for name, _ in student.named_modules(remove_duplicate=False)]
    if modules:
        found = [name for name in names if any(_matches(name, pattern) for pattern in modules)]
        for pattern in modules:
            if not any(_matches(name, pattern) for name in names):
                raise _unmatched(f"{kind}_modules", pattern, student, names)
    else:
        assert lineage is not None
        known = lineage.layers if kind == HIDDEN else lineage.attentions
        found = [name for name in names if lineage.name_before(name) in known]
    if lineage is not None:
        pairs = [Pair(kind, name, lineage.name_before(name)) for name in found]
        pairs = [pair for pair in pairs if not lineage.is_gone(pair.teacher)]
    else:
        _check_lists(found, teacher, student)
        pairs = [Pair(kind, name, name) for name in found]
    if not pairs:
        what = "layer" if kind == HIDDEN else "module that computes attention"
        raise SelectionError(
            f"no {what} of the teacher is left in the student under a name of its own",
            expected=f"at least one module for the {kind} term",
            where="distillation",
            remedy=f"Name modules of the student in {kind}_modules; of a graph module, distil the logits",
        )
    return pairs


def select(teacher: Tensor, kept: Kept | None) -> Tensor:
    """What the student has of a teacher's tensor."""
    for dim, index in enumerate(kept or ()):
        if index is not None:
            teacher = teacher.index_select(dim, index.to(teacher.device))
    return teacher


def feature_dim(value: Tensor) -> int:
    """Where the features of a hidden state lie: dimension 1 of feature maps, else the last."""
    return 1 if value.ndim >= 4 else value.ndim - 1


def make_projection(student: Tensor, teacher: Tensor, kept: Kept | None, seed: int) -> nn.Linear:
    """A map from the student's features to the teacher's; it starts at the kept units' places where known.

    Args:
        student: what the student's module gives.
        teacher: what the teacher's gives.
        kept: which of its indices the student has.
        seed: of the first weights where the plan does not say them; the global random state stays.

    Source: Jiao et al., 2020, TinyBERT, eq. 8 (W_h), https://arxiv.org/abs/1909.10351; for feature maps
    Romero et al., 2015, FitNets, section 2.2, with one by one positions, https://arxiv.org/abs/1412.6550.
    """
    ours, theirs = (value.shape[feature_dim(value)] for value in (student, teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(ours, theirs, bias=False)
    index = kept[feature_dim(teacher)] if kept else None
    if kept is not None and (theirs if index is None else len(index)) == ours:
        places = torch.arange(theirs) if index is None else index
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[places, torch.arange(ours)] = 1.0
    return layer.to(student.device)


def check_shapes(pair: Pair, student: Tensor, teacher: Tensor) -> None:
    """Raise unless the two can be compared index by index.

    Raises:
        ShapeError: their shapes differ.
    """
    if student.shape != teacher.shape:
        remedy = (
            "Give lineage=Lineage.of(removal, plan, groups), so that kept units are known"
            if pair.kind == ATTENTION
            else "Give lineage=Lineage.of(removal, plan, groups), or use projection='linear'"
        )
        raise ShapeError(
            f"the student gives {list(student.shape)}, and what it has of the teacher is "
            f"{list(teacher.shape)}",
            expected="equal shapes",
            where=pair.where,
            remedy=remedy,
        )


def _check_lists(names: Sequence[str], teacher: nn.Module, student: nn.Module) -> None:
    """Without a lineage, a list of modules with fewer of them does not say which they were."""
    theirs = dict(teacher.named_modules(remove_duplicate=False))
    ours = dict(student.named_modules(remove_duplicate=False))
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts)):
            holder = ".".join(parts[:end])
            before, after = (
                len(list(each[holder].children())) if holder in each else 0 for each in (theirs, ours)
            )
            if parts[end].isdecimal() and before != after:
                raise SelectionError(
                    f"{holder!r} has {after} modules in the student and {before} in the teacher, so that "
                    "names do not say which is which",
                    expected="a lineage, or a dict from the student's modules to the teacher's",
                    where=f"module {name!r}",
                    remedy="Give lineage=Lineage.of(removal, plan, groups)",
                )


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _unmatched(where: str, pattern: str, student: nn.Module, names: Sequence[str]) -> SelectionError:
    return SelectionError(
        f"the pattern {pattern!r} matches no module of the student, a {type(student).__name__}",
        expected=f"a pattern of one of {', '.join(name for name in names[:12] if name) or 'none'}",
        where=where,
        remedy="A graph module has no modules of its own: distil its logits, or prune with form='own class'",
    )
