"""The user's repaired class against the pruned graph: does it compute the same at the new widths?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import ProofError
from prunekit.graph import Graph
from prunekit.graph.change import Change
from prunekit.graph.export import export
from prunekit.surgery.compare import Precision, max_relative_error, outputs
from prunekit.surgery.repair import ATTEMPTS, Guess, attempts, guesses_of
from prunekit.surgery.scales import scale
from prunekit.surgery.tensors import copied, replace_everywhere

TRACED = 1e-4
"""Relative, in the model's own precision: a trace computes what the graph computes, or something else."""

ROUNDING = 1e-6
"""Relative: what the rounding of scaled weights may change in the outputs."""

QUICK_ATTEMPTS = 8
"""Combinations of guessed attributes that are tried where only the class's ability is asked for."""

SAME = "it computes what the pruned graph computes"


@dataclass(frozen=True)
class Rivals:
    """The two forms a removal can take, the class only if it is the graph's equal.

    Attributes:
        own: the user's class with narrower tensors.
        graph_module: the pruned graph, which is right by construction.
        graph: of the dense model, with the inputs as both take them.
        precision: in which the two are compared.
        scales: factors for the class's parameters while it is compared.
        thorough: try many combinations of guessed attributes, and let the class be traced; without that, find
            out quickly whether it can follow at all.
        names: of the class's tensors by their names in the graph, where those differ.
        scaled: the class's parameters that were scaled for good.
    """

    own: nn.Module
    graph_module: nn.Module
    graph: Graph
    precision: Precision
    scales: dict[str, Tensor] = field(default_factory=dict)
    thorough: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    scaled: list[str] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        """Largest relative difference at which the two are the same model."""
        return self.precision.tolerance

    def distance(self) -> tuple[float, str]:
        """How far the class is from the graph, and why it cannot be used if it is too far.

        Compared with the model's own weights and with two redrawn sets: an activation that is dead for the
        example inputs would hide a mistake behind it.
        """
        own, graph = self.precision.of(self.own), self.precision.of(self.graph_module)
        scale(own, self.scales)
        worst, reason = self._difference(own, graph)
        for seed in range(2):
            if worst > self.tolerance:
                break
            _redraw(own, graph, seed, self.names)
            scale(own, self.scales)
            worst, reason = self._difference(own, graph, redrawn=True)
        return worst, reason

    def settle(self, changes: Sequence[Change], scales: Mapping[str, Tensor]) -> tuple[float, str]:
        """Let the class follow until it is the graph's equal; :meth:`distance` at the end.

        1. It already is.
        2. With attributes that equal a changed constant set to what that became.
        3. The same, with the weights of queries and keys scaled: :mod:`prunekit.surgery.scales`.

        Args:
            changes: the constants that changed.
            scales: what the weights take over from a class that derives its attention's scale from the width.
        """
        first = self._follow(changes)
        if first[0] <= self.tolerance or not scales:
            return first
        self.scales.update(scales)
        error, reason = self._follow(changes)
        self.scales.clear()
        if error > self.tolerance or not self._survives_rounding(scales):
            return first
        scale(self.own, scales)
        self.scaled.extend(scales)
        return error, f"{reason}, its queries and keys scaled for their new width"

    def _survives_rounding(self, scales: Mapping[str, Tensor]) -> bool:
        """Scaled weights are rounded to their own dtype; that may not be seen in the outputs."""
        scaled = copied(self.own)
        scale(scaled, scales)
        own, graph = self.precision.of(scaled), self.precision.of(self.graph_module)
        return self._difference(own, graph)[0] <= max(ROUNDING, self.tolerance)

    def _follow(self, changes: Sequence[Change]) -> tuple[float, str]:
        error, reason = self.distance()
        if error <= self.tolerance:
            self._follow_the_trace(changes)
            return error, SAME
        most = ATTEMPTS if self.thorough else QUICK_ATTEMPTS
        for guesses in attempts(self.own, changes, most=most):
            found = self.distance()[0]
            if found <= self.tolerance:
                self.undo_needless(guesses)
                self._follow_the_trace(changes)
                return found, SAME
        return error, reason

    def _follow_the_trace(self, changes: Sequence[Change]) -> None:
        """Let attributes follow that are only read while the class is traced or exported.

        Tracing may lead through other code than running: keys that the operator shares between heads by
        itself are repeated in a trace, as often as an attribute says.
        """
        left = guesses_of(self.own, changes) if self.thorough else []
        left = [guess for guess in left if all(isinstance(holder, nn.Module) for holder in guess.holders)]
        if not left or self._traces():
            return
        for guess in left:
            guess.set(guess.options[0])
            if self.distance()[0] > self.tolerance:
                guess.set(guess.old)
            elif self._traces():
                return
        for guess in left:
            guess.set(guess.old)

    def _traces(self) -> bool:
        """The class can be traced, and its trace computes what the pruned graph computes."""
        graph = self.graph
        floating = [tensor for tensor in self.own.parameters() if tensor.is_floating_point()]
        rounding = max((torch.finfo(tensor.dtype).eps for tensor in floating), default=0.0)
        try:
            scaled = copied(self.own)
            scale(scaled, self.scales)
            program, (args, kwargs) = export(scaled, (graph.args, graph.kwargs))
            with torch.no_grad():  # What torch.export gives has no modes to set.
                leaves = pytree.tree_leaves(program.module(check_guards=False)(*args, **kwargs))
        except Exception:  # whatever the user's forward raises while it is traced
            return False
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]
        expected = outputs(self.graph_module, args, kwargs)
        return max_relative_error(expected, found) <= max(TRACED, 16 * rounding)

    def is_own(self, other: nn.Module) -> bool:
        """Another model computes what the class computes."""
        own = self.precision.of(self.own)
        try:
            return self.precision.distance(own, self.precision.of(other), self.graph) <= self.tolerance
        except Exception:  # whatever the user's forward raises
            return False

    def undo_needless(self, guesses: Iterable[Guess]) -> None:
        """An attribute that only happened to have the old width goes back to what it was."""
        for guess in guesses:
            new = getattr(guess.holders[0], guess.name)
            if new == guess.old:
                continue
            guess.set(guess.old)
            if self.distance()[0] > self.tolerance:
                guess.set(new)

    def _difference(
        self, own: nn.Module, graph_module: nn.Module, *, redrawn: bool = False
    ) -> tuple[float, str]:
        worst = 0.0
        for args, kwargs in self.precision.batches(self.graph):
            try:
                expected = outputs(graph_module, args, kwargs)
            except Exception as error:  # whatever an operator raises at shapes that do not fit
                raise ProofError(
                    f"the pruned graph of {type(own).__name__} does not run: {type(error).__name__}: {error}",
                    remedy="The model is untouched. Leave out groups with ignore=, and please report it",
                ) from error
            try:
                found = outputs(own, args, kwargs)
            except Exception as error:  # whatever the user's forward raises on the narrower tensors
                text = (str(error).strip().splitlines() or [""])[0]
                return float("inf"), f"does not run once pruned ({type(error).__name__}: {text})"
            if redrawn and not all(bool(tensor.isfinite().all()) for tensor in expected):
                continue
            worst = max(worst, max_relative_error(expected, found))
        return worst, f"computes something else once pruned (relative error {worst:.1e})"


def _redraw(own: nn.Module, graph_module: nn.Module, seed: int, names: Mapping[str, str]) -> None:
    """Give both models the same new parameters, of either sign and of the old size."""
    generator = torch.Generator().manual_seed(seed)
    for name, old in list(graph_module.named_parameters()):
        if not old.is_floating_point() or old.numel() == 0:
            continue
        size = float(old.detach().double().square().mean().sqrt()) or 0.1
        drawn: Tensor = torch.randn(old.shape, generator=generator, dtype=torch.float64).to(old) * size
        for model, called in ((own, names.get(name, name)), (graph_module, name)):
            replace_everywhere(model, model, called, drawn.clone())
