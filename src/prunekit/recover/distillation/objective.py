"""The objective of distillation: a student learns to give what its dense parent gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ShapeError, TrainingError, UsageError
from prunekit.recover.distillation.distances import attention_distance, hidden_distance, logit_divergence
from prunekit.recover.distillation.lineage import Kept, Lineage
from prunekit.recover.distillation.pairs import (
    Pair,
    check_shapes,
    feature_dim,
    find_pairs,
    make_projection,
    select,
)
from prunekit.recover.distillation.positions import (
    Counted,
    Positions,
    is_causal,
    labelled,
    mask_for,
    positions_of,
)
from prunekit.recover.distillation.reading import (
    ATTENTION,
    HIDDEN,
    LOGITS,
    Heard,
    find_logits,
    listening,
    unwrapped,
)
from prunekit.recover.distillation.remembered import Remembered
from prunekit.recover.distillation.settings import DistillationSettings
from prunekit.recover.distillation.teacher import Teacher
from prunekit.workload import Batch, Split, device_of, evaluating

TaskLoss = Callable[[Any, Batch], Tensor]


class Distillation(nn.Module):
    """What a student minimises to become like its teacher: ``objective(model, batch)``, a scalar.

    The loss is ``task * L_task + logits * L_logits + hidden * L_hidden + attention * L_attention``, with the
    terms of :mod:`~prunekit.recover.distillation.distances`; those of several modules are averaged. Without
    ``task`` no labels are needed, and ``batch.target`` may be None.

    Laws: a student that computes what the teacher computes is at loss 0 (``task`` aside); the order of the
    examples and the amount of padding change nothing; the teacher is left exactly as it is found, gets no
    gradient, and is neither among the parameters nor in the state dict of this module, whose own parameters
    are those of learnt projections; no hook is left behind.

    Args:
        teacher: the dense parent, on any device and in any floating type.
        settings: the weights of the terms, and how each is computed.
        student: the model that will be trained, needed for hidden states and attention maps; where it is
            given, everything is checked on one batch at once.
        lineage: how the student came from the teacher, so that kept units and moved layers are compared with
            what they were.
        example: a batch for that check; by default the example inputs of the lineage.
        loss: ``loss(outputs, batch)``, the task's own mean loss; for a weight of ``task``.
        logits_of: ``logits_of(outputs)``, the logits in what a model gives; by default
            :func:`~prunekit.recover.distillation.reading.logits_in`.
        counted: ``counted(batch)``, ``[examples, positions]`` bool or None, which positions hold something;
            by default :func:`~prunekit.recover.distillation.positions.positions_of`.

    Attributes:
        settings: as given.
        pairs: the modules that are compared.
        projections: the learnt maps, one for each pair of hidden states, or none.
        terms: the value of each term in the last call, without its weight and gradient.

    Raises:
        UsageError: a loss, student or example is missing.
        PlanError: the lineage is not that of teacher and student.
        SelectionError: no modules, or none of that name.
        ShapeError: what the two give does not fit together.
        TrainingError: a module gives nothing of the kind that is compared.
    """

    def __init__(
        self,
        teacher: nn.Module,
        settings: DistillationSettings | None = None,
        *,
        student: nn.Module | None = None,
        lineage: Lineage | None = None,
        example: Batch | None = None,
        loss: TaskLoss | None = None,
        logits_of: Callable[[Any], Tensor] | None = None,
        counted: Counted | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings = settings or DistillationSettings()
        self.terms: dict[str, Tensor] = {}
        self.pairs: tuple[Pair, ...] = ()
        self.projections = nn.ModuleList()
        self._loss, self._logits_of, self._counted = loss, logits_of, counted
        self._kept: dict[Pair, Kept | None] = {}
        if settings.task and loss is None:
            raise UsageError(
                f"the task loss has the weight {settings.task} and no loss was given",
                expected="loss=, a function of outputs and batch",
                where="distillation",
                remedy="Give the workload's loss, or task=0 to learn from the teacher alone",
            )
        causal = is_causal(teacher) if settings.causal is None else settings.causal
        self._causal = causal
        if (settings.hidden or settings.attention) and student is None:
            raise UsageError(
                "no student was given",
                expected="student=, the model that will be trained: hidden states and attention maps are "
                "compared module by module",
                where="distillation",
            )
        if student is not None:
            student = unwrapped(student)
            if lineage is not None:
                lineage.check(teacher, student)
            self.pairs = tuple(find_pairs(settings, teacher, student, lineage))
        # In a tuple, so that it is no submodule: it is neither trained nor saved.
        self._teacher = (Teacher(teacher, logits_of, settings, self.pairs, counted),)
        example = lineage.example if example is None and lineage is not None else example
        if student is not None and example is not None:
            self._prepare(student, lineage, example)
        elif self.pairs:
            raise UsageError(
                "no example was given, on which hidden states and attention maps could be compared",
                expected="example=, a batch, or lineage=",
                where="distillation",
            )

    @property
    def teacher(self) -> nn.Module:
        """The dense parent."""
        return self._teacher[0].model

    @property
    def remembers_examples(self) -> bool:
        """It knows examples by their ids, so that a batch must not be augmented before it comes here."""
        return bool(self._teacher[0].stores)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch.

        Args:
            model: the student as it is trained, in a wrapper or not.
            batch: on the student's device.

        Raises:
            ShapeError: what the student gives does not fit to what the teacher gives.
            TrainingError: the teacher gives NaN, a remembered example has other inputs or is unknown,
                attention maps do not sum to 1, or logits are missing.
            StorageError: remembered outputs cannot be read.
        """
        positions = positions_of(batch, self.teacher, self._counted)
        taught = self._teacher[0].give(batch, positions, model) if self.settings.compares else {}
        names = [(pair.kind, pair.student) for pair in self.pairs]
        with listening(unwrapped(model), names, "student") as heard:
            outputs = model(*batch.args, **batch.kwargs)
        terms = self._compare(outputs, heard, taught, batch, positions)
        if self.settings.task:
            assert self._loss is not None
            terms["task"] = self._loss(outputs, batch)
        self.terms = {name: value.detach() for name, value in terms.items()}
        loss = torch.stack([getattr(self.settings, name) * value for name, value in terms.items()]).sum()
        if not bool(torch.isfinite(loss.detach())):
            _check_taught(taught)
        return loss

    def remember(
        self,
        split: Split,
        directory: Path | str,
        *,
        batch_size: int = 32,
        shard_bytes: int = 2**28,
        rebuild: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Remembered:
        """Run the teacher over a split once, and read from disk what it gave from then on.

        An interrupted call is continued by the next one. What is there must follow from this teacher and this
        split. With several processes, let one of them call it first.

        Args:
            split: the examples; batches are known by their ids, in any order and company, padded to any
                length as long as the mask of positions says what is padding.
            directory: where the files go; one directory for each split.
            batch_size: examples in each run of the teacher.
            shard_bytes: a file is closed once it holds as much.
            rebuild: write anew what is there and follows from something else.
            progress: called with (examples done, all examples).

        Raises:
            UsageError: what is there follows from something else, and ``rebuild`` is not set; or no term
                needs the teacher.
            StorageError: the disk or the directory refused, or the index is damaged.
        """
        return self._teacher[0].remember(
            split,
            Path(directory),
            batch_size=batch_size,
            shard_bytes=shard_bytes,
            rebuild=rebuild,
            progress=progress,
        )

    def _prepare(self, student: nn.Module, lineage: Lineage | None, example: Batch) -> None:
        """Check everything on one batch, find the kept units, and make the projections."""
        names = [(pair.kind, pair.student) for pair in self.pairs]
        example = example.to(device_of(student))
        positions = positions_of(example, self.teacher, self._counted)
        taught = self._teacher[0].give(example, positions, student) if self.settings.compares else {}
        with evaluating(student), torch.no_grad(), listening(student, names, "student") as heard:
            outputs = student(*example.args, **example.kwargs)
        for seed, pair in enumerate(self.pairs):
            theirs, ours = taught[f"{pair.kind}/{pair.teacher}"], heard[pair.kind, pair.student]
            known = None if lineage is None else lineage.kept(pair.kind, pair.teacher, theirs.ndim)
            self._kept[pair] = known
            if pair.kind == HIDDEN and self.settings.projection == "linear":
                self.projections.append(make_projection(ours, theirs, known, seed))
        with torch.no_grad():
            self._compare(outputs, heard, taught, example, positions)

    def _compare(
        self,
        outputs: Any,
        heard: Heard,
        taught: Mapping[str, Tensor],
        batch: Batch,
        positions: Positions,
    ) -> dict[str, Tensor]:
        """The terms that need the teacher, each a mean without its weight."""
        terms = {}
        if self.settings.logits:
            terms[LOGITS] = self._logit_term(outputs, taught[LOGITS], batch, positions)
        hidden = [pair for pair in self.pairs if pair.kind == HIDDEN]
        maps = [pair for pair in self.pairs if pair.kind == ATTENTION]
        if hidden:
            projections: Sequence[Any] = list(self.projections) or [None] * len(hidden)
            each = [
                self._hidden_term(pair, heard[HIDDEN, pair.student], taught, positions, projection)
                for pair, projection in zip(hidden, projections, strict=True)
            ]
            terms[HIDDEN] = torch.stack(each).mean()
        if maps:
            each = [self._map_term(pair, heard[ATTENTION, pair.student], taught, positions) for pair in maps]
            terms[ATTENTION] = torch.stack(each).mean()
        return terms

    def _logit_term(self, outputs: Any, theirs: Tensor, batch: Batch, positions: Positions) -> Tensor:
        settings = self.settings
        where, ours = find_logits(outputs, self._logits_of, "student")
        self._teacher[0].check_place(where)
        if ours.shape != theirs.shape:
            raise ShapeError(
                f"the student gives {list(ours.shape)}, the teacher {list(theirs.shape)}",
                expected="the same number of classes and positions",
                where="logits",
                remedy="Distil from the parent that the student was cut from, without release= on its "
                "logits, or give logits_of= for the part that the two have in common",
            )
        class_dim = (1 if ours.ndim >= 4 else -1) if settings.class_dim is None else settings.class_dim
        counted = mask_for(ours, positions.outputs, "logits")
        has = labelled(
            ours, batch, causal=self._causal, ignore_index=settings.ignore_index, class_dim=class_dim
        )
        if counted is not None:
            counted = counted.to(ours.device) if has is None else counted.to(ours.device) & has
        return logit_divergence(
            ours,
            theirs,
            temperature=settings.temperature,
            counted=has if counted is None else counted,
            class_dim=class_dim,
        )

    def _hidden_term(
        self,
        pair: Pair,
        ours: Tensor,
        taught: Mapping[str, Tensor],
        positions: Positions,
        projection: nn.Module | None,
    ) -> Tensor:
        theirs = taught[f"{HIDDEN}/{pair.teacher}"]
        if projection is None:
            theirs = select(theirs, self._kept[pair])
        else:
            dim = feature_dim(ours)
            ours = projection(ours.movedim(dim, -1).to(next(projection.parameters()).dtype)).movedim(-1, dim)
        check_shapes(pair, ours, theirs)
        counted = mask_for(ours, positions.tokens, pair.where)
        return hidden_distance(
            ours,
            theirs,
            distance=self.settings.hidden_distance,
            counted=None if counted is None else counted.to(ours.device),
            feature_dim=feature_dim(ours),
        )

    def _map_term(
        self, pair: Pair, ours: Tensor, taught: Mapping[str, Tensor], positions: Positions
    ) -> Tensor:
        theirs = select(taught[f"{ATTENTION}/{pair.teacher}"], self._kept[pair])
        check_shapes(pair, ours, theirs)
        counted = None if positions.tokens is None else positions.tokens.to(ours.device)
        if counted is not None and ours.shape[2:] != (counted.shape[1], counted.shape[1]):
            raise ShapeError(
                f"it has the shape {list(ours.shape)}, and the mask of positions {list(counted.shape)}",
                expected="a query and a key for each position",
                where=pair.where,
                remedy="Give Distillation counted=, a function from a batch to the mask, or to None for all",
            )
        distance = self.settings.attention_distance
        if distance == "kl":
            _check_sums(pair, ours, counted)
        return attention_distance(ours, theirs, distance=distance, counted=counted)


def _check_taught(taught: Mapping[str, Tensor]) -> None:
    """Make sure that a loss which is no number is not the teacher's doing."""
    for key, value in taught.items():
        if bool(value.isnan().any()):
            raise TrainingError(
                f"the teacher's {key} hold NaN",
                expected="a teacher that gives numbers for every example",
                where="distillation",
                remedy="Look for NaN in the teacher's weights and in the inputs",
            )


def _check_sums(pair: Pair, maps: Tensor, counted: Tensor | None) -> None:
    sums = maps.detach().sum(-1)
    off = (sums - 1).abs() > 0.02
    if counted is not None:
        off &= counted[:, None]
    if off.any():
        raise TrainingError(
            f"the student's attention sums to {float(sums[off][0]):.3g} over the keys of a query",
            expected="probabilities, which sum to 1",
            where=pair.where,
            remedy="Set the dropout of the student's attention to 0 while it learns maps, or use "
            "attention_distance='mse'",
        )
