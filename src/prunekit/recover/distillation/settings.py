"""What a distillation is made of: the weights of its terms, and how each is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunekit.errors import UsageError
from prunekit.recover.numbers import check, is_number

WHERE = "distillation settings"

HIDDEN_DISTANCES = ("mse", "cosine")
ATTENTION_DISTANCES = ("kl", "mse")
PROJECTIONS = ("identity", "linear")

Modules = Sequence[str] | Mapping[str, str]
"""Shell-style patterns of the student's modules, or the teacher's module for each of the student's."""


@dataclass(frozen=True)
class DistillationSettings:
    """The weights of the four terms, and how each is computed; plain values, as in a recipe.

    The loss is the sum of the terms, each a mean times its weight; a term of weight 0 is not computed.

    Attributes:
        logits: weight of the divergence between the teacher's and the student's softened outputs.
        temperature: what logits are divided by before the softmax, > 0.
        class_dim: the dimension of the logits along which classes lie; None for 1 where they have four
            dimensions or more (images of classes), else the last.
        hidden: weight of the distance between hidden states.
        hidden_modules: where they are taken; () for the layers that the lineage knows.
        hidden_distance: ``mse`` or ``cosine``.
        projection: ``identity`` compares unit with unit, by the plan those that were kept; ``linear`` learns
            a map from each student module's width to the teacher's.
        attention: weight of the distance between attention maps.
        attention_modules: where they are taken; () for the attention that the lineage knows.
        attention_distance: ``kl`` or ``mse``.
        task: weight of the task's own loss.
        causal: the labels of a position say what should follow it, as in decoders of transformers; None
            for what the teacher's class says.
        ignore_index: the label of positions that do not count.

    Raises:
        UsageError: a value that cannot be, or no term has a weight.
    """

    logits: float = 1.0
    temperature: float = 2.0
    class_dim: int | None = None
    hidden: float = 0.0
    hidden_modules: Modules = ()
    hidden_distance: str = "mse"
    projection: str = "identity"
    attention: float = 0.0
    attention_modules: Modules = ()
    attention_distance: str = "kl"
    task: float = 0.0
    causal: bool | None = None
    ignore_index: int = -100

    def __post_init__(self) -> None:
        for name in ("logits", "hidden", "attention", "task"):
            weight = getattr(self, name)
            check(name, weight, "a finite weight >= 0", is_number(weight) and weight >= 0, where=WHERE)
        warm = is_number(self.temperature) and self.temperature > 0
        check("temperature", self.temperature, "a finite number > 0", warm, where=WHERE)
        for name, known in (
            ("hidden_distance", HIDDEN_DISTANCES),
            ("attention_distance", ATTENTION_DISTANCES),
            ("projection", PROJECTIONS),
        ):
            given = getattr(self, name)
            check(name, given, f"one of {', '.join(known)}", given in known, where=WHERE)
        for name in ("hidden_modules", "attention_modules"):
            given = getattr(self, name)
            names = [*given, *given.values()] if isinstance(given, Mapping) else given
            right = isinstance(names, Sequence) and not isinstance(names, str)
            check(
                name,
                given,
                "a list of patterns, or a dict from the student's modules to the teacher's",
                right and all(isinstance(each, str) for each in names),
                where=WHERE,
            )
        known = self.causal in (None, True, False)
        check("causal", self.causal, "true, false or none", known, where=WHERE)
        if not (self.logits or self.hidden or self.attention or self.task):
            raise UsageError(
                "all weights are 0, so that there is nothing to learn",
                expected="a weight > 0 for logits, hidden, attention or task",
                where=WHERE,
            )

    @property
    def compares(self) -> bool:
        """Some term needs the teacher."""
        return bool(self.logits or self.hidden or self.attention)
