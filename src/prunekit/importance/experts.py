"""How much each expert of a mixture adds to the outputs of the tokens that the router sends to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from prunekit.errors import CalibrationError
from prunekit.graph import Groups
from prunekit.graph.nodes import operator_name, static_nodes
from prunekit.importance.reads import Point
from prunekit.importance.view import GroupView, Rows
from prunekit.ranks import Ranks
from prunekit.types import Granularity, IntArray

EXPERT_OUTPUT = "expert_output"
"""The statistic ``mean_{n routed to u} |g[n, u] * f[n, u]|_2``, ``[units]``, in units of the output."""


def score_reap(view: GroupView) -> Rows:
    """Score each expert by what it adds to the outputs of the tokens that are routed to it.

    ``score[u] = mean_{n: g[n, u] != 0} |g[n, u] * f_u(x[n])|_2``; ``g`` is the router's weight, ``f`` the
    expert

    An expert that no token is routed to scores zero. The product is observed where the experts' outputs are
    put together: everything between the experts' last weights and the sum over experts is run once per
    expert, with the other experts silent, so it does not matter how a model sorts, weighs and gathers tokens.

    Returns:
        ``[1, units]`` float64, >= 0, in units of the layer's output; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: Lasby et al., 2025, REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression, section 4
    (router-weighted expert activation pruning), https://arxiv.org/abs/2510.13999. Deviation: none where the
    experts' last weights have no bias behind them; a bias that is looked up per token is left out.
    """
    return view.statistic(EXPERT_OUTPUT)[None, :]


def why_no_experts(view: GroupView) -> str:
    """Say why a group has no routed experts, or ""."""
    if view.group.granularity is not Granularity.EXPERT:
        return f"its units are of the kind {view.group.granularity.value}, not experts that a router chooses"
    if view.stats is not None and view.group.name not in view.stats.values.get(EXPERT_OUTPUT, ()):
        return "its experts' outputs do not come together in a sum"
    return ""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Where a group's experts give their outputs, and where these come together.

    Attributes:
        group: its name.
        experts: how many there are.
        start: the node that gives the experts' outputs.
        units: ``[n]`` the expert of each index of ``start``'s dimensions ``index``; empty where its rows are
            sorted by expert.
        index: these dimensions.
        ends: the node that says where the rows of each expert end, or None.
        steps: the nodes from ``start`` to the sum over experts, the sum last.
        needs: values from outside that the steps read.
    """

    group: str
    experts: int
    start: Node
    units: IntArray
    index: tuple[int, ...]
    ends: Node | None
    steps: tuple[Node, ...]
    needs: frozenset[Node]

    @property
    def end(self) -> Node:
        """The node at which the outputs have come together."""
        return self.steps[-1]


def mixtures_of(groups: Groups, points: list[Point]) -> list[Mixture]:
    """Every prunable group of experts whose outputs come together in a sum."""
    place = {node: number for number, node in enumerate(groups.graph.nodes)}
    found = []
    for group in groups:
        at = [point for point in points if group.name in point.units]
        if group.granularity is not Granularity.EXPERT or not at:
            continue
        last = max(at, key=lambda point: place[point.after])
        ends = None if last.read is None else last.read.ends
        start = last.after if ends is not None else _behind_bias(groups, group.name, last.after)
        steps = _steps(groups, start, place)
        labels = groups.labels_of(start)[0]
        index = tuple(dim for dim, known in enumerate(labels) if isinstance(known, np.ndarray))
        units = groups.units_at(group.name, [labels[dim] for dim in index]) if ends is None else None
        if not steps or (ends is None and units is None):
            continue
        inside = {start, *steps}
        needs = {source for step in steps for source in step.all_input_nodes} - inside
        flat = np.empty(0, dtype=np.int64) if units is None else units.ravel()
        found.append(
            Mixture(group.name, group.size, start, flat, index, ends, tuple(steps), frozenset(needs))
        )
    return found


def _behind_bias(groups: Groups, name: str, node: Node) -> Node:
    """The node behind a bias of the experts that is added right away."""
    static = static_nodes(groups.graph.nodes, lambda node: node.name in groups.graph.tensors)
    while len(node.users) == 1:
        (user,) = node.users
        others = [source for source in user.all_input_nodes if source is not node]
        added = operator_name(user) == "aten.add" and len(others) == 1 and others[0] in static
        if not added or groups.units_at(name, groups.labels_of(others[0])[0]) is None:
            break
        node = user
    return node


_SUMS = frozenset(
    f"aten.{name}"
    for name in (
        *("sum", "mean", "einsum", "matmul", "bmm", "mm", "baddbmm", "linear"),
        *("index_add", "scatter_add", "scatter_reduce"),
    )
)
"""Operators at which the outputs of several experts can become one."""


def _steps(groups: Groups, start: Node, place: Mapping[Node, int]) -> list[Node]:
    """What follows ``start`` until one sum holds all of it; empty where there is none."""
    inside, steps = {start}, []
    for node in groups.graph.nodes[place[start] + 1 :]:
        if not inside.intersection(node.all_input_nodes):
            continue
        if node.op == "output":
            return []
        steps.append(node)
        open_still = any(place[user] > place[node] for known in inside for user in known.users)
        if operator_name(node) in _SUMS and not open_still:
            return steps
        inside.add(node)
    return []


class ExpertOutputs:
    """Gathers the mean norm of what each expert adds, over the tokens that are routed to it."""

    def __init__(self, experts: int) -> None:
        self._total = torch.zeros(experts, dtype=torch.float64)
        self._tokens = torch.zeros(experts, dtype=torch.float64)
        self._given: Tensor | None = None

    @property
    def working_bytes(self) -> int:
        """Bytes that :meth:`update` holds for a moment: four copies of the experts' outputs."""
        return 0 if self._given is None else 4 * self._given.nbytes

    def hold(self, mixture: Mixture, values: Mapping[Node, Any]) -> Tensor:
        """Keep the experts' outputs as they are before anything follows; some steps work in place.

        Returns:
            What is held until :meth:`update`.
        """
        given = values[mixture.start].detach()
        held = given.clone() if any(_in_place(step) for step in mixture.steps) else given
        self._given = held
        return held

    @torch.no_grad()
    def update(self, mixture: Mixture, values: Mapping[Node, Any]) -> Tensor:
        """Take in one forward pass, once the experts' outputs have come together.

        Returns:
            What was held and is let go.

        Raises:
            CalibrationError: they come together otherwise than in a sum of products, or hold NaN or infinity.
        """
        given, self._given = self._given, None
        assert given is not None
        silent = torch.zeros_like(given)
        if _run(mixture, silent.clone(), values).any():
            raise CalibrationError(
                "What follows the experts is not zero where all of them are",
                where=f"group '{mixture.group}'",
                remedy="Score this group with another criterion",
            )
        owner = _owners(mixture, given, values)
        for expert in range(mixture.experts):
            own = owner == expert
            added = _run(mixture, torch.where(own, given, silent), values)
            weight = _run(mixture, torch.where(own, 1.0, silent), values)
            norms = torch.linalg.vector_norm(added.double(), dim=-1)
            if not torch.isfinite(norms).all():
                raise CalibrationError(
                    f"The outputs of expert {expert} hold NaN or infinity",
                    where=f"group '{mixture.group}'",
                    remedy="Look for NaN in the data or the weights, or calibrate in float32",
                )
            self._total[expert] += norms.sum().cpu()
            self._tokens[expert] += (weight != 0).any(dim=-1).sum().cpu()
        return given

    def pool(self, ranks: Ranks) -> None:
        """Add what the other processes took in, from rank 0 upwards."""
        self._total, self._tokens = ranks.sum_all([self._total, self._tokens], EXPERT_OUTPUT)

    def finish(self) -> np.ndarray:
        """``[experts]`` float64; 0 for experts that no token was routed to."""
        return (self._total / self._tokens.clamp_min(1)).numpy()


def _owners(mixture: Mixture, given: Tensor, values: Mapping[Node, Any]) -> Tensor:
    """The expert that each entry of the outputs comes from, shaped to go along with them."""
    if mixture.ends is not None:
        ends = values[mixture.ends].to(torch.int64)
        rows = torch.arange(len(given), device=given.device)
        return torch.searchsorted(ends, rows, right=True).reshape(-1, *[1] * (given.ndim - 1))
    shape = [given.shape[dim] if dim in mixture.index else 1 for dim in range(given.ndim)]
    return torch.from_numpy(mixture.units).to(given.device).reshape(shape)


def _run(mixture: Mixture, given: Tensor, values: Mapping[Node, Any]) -> Tensor:
    """What the steps make of the experts' outputs, with everything else as it was."""
    env: dict[Node, Any] = {mixture.start: given}
    for step in mixture.steps:

        def value_of(node: Node, in_place: bool = _in_place(step)) -> Any:
            if node in env:
                return env[node]
            return values[node].clone() if in_place and isinstance(values[node], Tensor) else values[node]

        args, kwargs = map_arg(step.args, value_of), map_arg(step.kwargs, value_of)
        env[step] = step.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    return env[mixture.end]


def _in_place(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
