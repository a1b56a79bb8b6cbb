"""How much layers and residual branches matter: what each does to its input, and to the loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Node

from prunekit.errors import CalibrationError
from prunekit.graph import Groups
from prunekit.graph.atoms import Fixed
from prunekit.graph.liveness import Bypass
from prunekit.importance.replay import Ledger, Replay, Watcher
from prunekit.importance.view import GroupView, Rows
from prunekit.ranks import Ranks

BLOCK_INFLUENCE = "block_influence"
"""The statistic of :func:`score_block_influence`."""

LAYER_GATE = "layer_gate"
"""The statistic of :func:`score_layer_gate`."""

BYPASS_LOSS = "bypass_loss"
"""The statistic of :func:`score_bypass_loss`."""

OF_LAYERS = frozenset({BLOCK_INFLUENCE, LAYER_GATE, BYPASS_LOSS})
"""The statistics of layers and branches; they look at the traced graph."""


class LayerEffects:
    """Gathers what layers and branches do, batch by batch.

    Memory: one float64 per layer and statistic, a copy of a layer's input while it runs and, for
    ``layer_gate``, what each layer changes until the batch has been differentiated.

    Args:
        groups: the groups that will be scored; those that are no layers or branches are passed over.
        needs: the statistics, among :data:`OF_LAYERS`.
    """

    def __init__(self, groups: Groups, needs: Collection[str]) -> None:
        self._needs = frozenset(needs) & OF_LAYERS
        self._names = [group.name for group in groups if group.is_depth] if self._needs else []
        sizes = {name: len(groups.bypasses[name]) for name in self._names}
        self._sums = {need: {n: np.zeros(size) for n, size in sizes.items()} for need in self._needs}
        self._counts = {name: np.zeros(size) for name, size in sizes.items()}
        self._batches = 0
        self._gates: list[tuple[str, int, Tensor]] = []

    def places(self, groups: Groups) -> Iterator[tuple[str, int, Bypass]]:
        """Every layer and branch: its group, its unit, and where it lies in the graph of ``groups``."""
        for name in self._names:
            for unit, part in enumerate(groups.bypasses[name]):
                yield name, unit, part

    def watchers(self, groups: Groups, ledger: Ledger) -> dict[Node, list[Watcher]]:
        """What to call after which node."""
        parts = list(self.places(groups))
        readers = Counter(part.entry for _, _, part in parts)
        given: dict[Node, Tensor] = {}
        pending: Counter[Node] = Counter()

        def enter(node: Node, values: Mapping[Node, Any]) -> None:
            given[node] = values[node].detach().clone()  # An operator may write into it afterwards.
            pending[node] = readers[node]
            ledger.add(given[node], node.name)

        def leave(name: str, unit: int, part: Bypass, dim: int, values: Mapping[Node, Any]) -> None:
            change = self._leave(name, unit, given[part.entry], values[part.exit], dim)
            ledger.add(change, f"what {name} {unit} changes")
            pending[part.entry] -= 1
            if not pending[part.entry]:
                ledger.remove(given.pop(part.entry))

        watching: dict[Node, list[Watcher]] = {}
        for name, unit, part in parts:  # One layer is left before the next is entered.
            dim = _labelled(groups, part.entry)
            watching.setdefault(part.exit, []).append(partial(leave, name, unit, part, dim))
        for node in readers:
            watching.setdefault(node, []).append(partial(enter, node))
        return watching

    def _leave(self, name: str, unit: int, given: Tensor, gives: Tensor, dim: int) -> Tensor | None:
        """A layer has run; what it changed, where that is held until the loss is differentiated."""
        if BLOCK_INFLUENCE in self._needs:
            alike = torch.nn.functional.cosine_similarity(given.double(), gives.detach().double(), dim=dim)
            if not torch.isfinite(alike).all():
                raise CalibrationError(
                    "What it is given or what it gives holds NaN or infinity",
                    where=f"unit {unit} of group '{name}'",
                    remedy="Look for NaN in the data or the weights, or calibrate in float32",
                )
            self._sums[BLOCK_INFLUENCE][name][unit] += float((1 - alike).sum())
            self._counts[name][unit] += alike.numel()
        if LAYER_GATE in self._needs and gives.requires_grad:
            change = gives.detach() - given
            gives.register_hook(lambda gradient: self._gates.append((name, unit, (change * gradient).sum())))
            return change
        return None

    def differentiated(self) -> None:
        """One more batch was taken in, and its loss differentiated where that was asked for."""
        self._batches += 1
        found: dict[tuple[str, int], float] = {}
        for name, unit, change in self._gates:
            found.setdefault((name, unit), float(change))  # The first is the loss, a second the variance.
        self._gates.clear()
        for (name, unit), change in found.items():
            self._sums[LAYER_GATE][name][unit] += abs(change)

    def bypass(
        self,
        replay: Replay,
        groups: Groups,
        leaves: list[Any],
        loss_of: Callable[[Any], float],
        ledger: Ledger,
    ) -> None:
        """Measure the loss of one batch without each layer in turn."""
        with torch.no_grad():
            whole = loss_of(replay.forward_on(leaves, ledger, watched=False))
            for name, unit, part in self.places(groups):
                around = {part.exit: part.entry}
                without = loss_of(replay.forward_on(leaves, ledger, instead=around, watched=False))
                self._sums[BYPASS_LOSS][name][unit] += without - whole

    def pool(self, ranks: Ranks) -> None:
        """Add what the other processes took in, from rank 0 upwards."""
        self._batches = sum(ranks.gather(self._batches, "batches of layers"))
        for what in (*sorted(self._needs), "positions"):
            named = self._counts if what == "positions" else self._sums[what]
            totals = ranks.sum_all([torch.from_numpy(sums) for sums in named.values()], what)
            named.update({name: total.numpy() for name, total in zip(named, totals, strict=True)})

    def finish(self) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
        """The statistics by need and group name, ``[units]``."""
        found = {}
        for need, named in self._sums.items():
            by_count = need == BLOCK_INFLUENCE
            found[need] = {
                name: sums / np.maximum(self._counts[name] if by_count else self._batches, 1)
                for name, sums in named.items()
            }
        return found


def _labelled(groups: Groups, node: Node) -> int:
    """The dimension along which what a layer is given is a vector: the longest that has labels."""
    lengths = [0 if isinstance(dim, Fixed) else len(dim) for dim in groups.labels_of(node)[0]]
    return lengths.index(max(lengths))


def score_block_influence(view: GroupView) -> Rows:
    """Score each layer by how far it turns what it is given.

    ``score[l] = 1 - mean_t cos(x[l, t], x[l + 1, t])``

    ``x[l, t]`` is the vector at position ``t`` (a token or a place in an image, of any calibration example)
    that enters the layer, ``x[l + 1, t]`` the one that leaves it.

    Returns:
        ``[1, units]`` float64 in ``[0, 2]``; higher = keep.

    Source: Men et al., 2024, ShortGPT, eq. 1, https://arxiv.org/abs/2403.03853. Deviation: none.
    """
    return np.maximum(view.statistic(BLOCK_INFLUENCE), 0.0)[None]


def score_layer_gate(view: GroupView) -> Rows:
    """Score each layer by the derivative of the loss by a gate on what it changes.

    ``score[l] = mean_b |sum (f[l] * dL_b / dy[l])|``, where the layer gives ``y = x + g f`` with the gate 1

    Returns:
        ``[1, units]`` float64, >= 0, in units of the loss; higher = keep.

    Source: Michel et al., 2019, eq. 2, https://arxiv.org/abs/1905.10650, with a layer in place of a head.
    Deviation: the mean is over batches where the paper takes examples; batches of one give the paper's.
    """
    return view.statistic(LAYER_GATE)[None]


def score_bypass_loss(view: GroupView) -> Rows:
    """Score each layer by the loss that calibration data have without it.

    ``score[l] = d[l] - min(0, min_m d[m])``, ``d[l] = mean_b (L_b without l - L_b)``

    A layer that harms goes first; the shift keeps scores from being negative and changes no order.

    Returns:
        ``[1, units]`` float64, >= 0, in units of the loss; higher = keep.

    Source: Kim et al., 2024, Shortened LLaMA, https://arxiv.org/abs/2402.02834, which takes the perplexity
    without the layer. Deviation: the caller's loss in its place, shifted.
    """
    change = view.statistic(BYPASS_LOSS)
    return (change - min(0.0, float(change.min(initial=math.inf))))[None]


def why_no_layer(view: GroupView) -> str:
    """Say why a criterion of layers says nothing about a group, or ""."""
    return "" if view.group.is_depth else "its units lie along dimensions; no layer is left out with them"
