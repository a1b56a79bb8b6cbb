"""What calibration gathers from activations, on the traced graph with the model's own weights."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError, SelectionError
from prunekit.graph import Groups, find_groups, trace
from prunekit.importance.experts import EXPERT_OUTPUT, ExpertOutputs, Mixture, mixtures_of
from prunekit.importance.layers import BYPASS_LOSS, LayerEffects
from prunekit.importance.lending import Lending
from prunekit.importance.reads import Point, points_of
from prunekit.importance.replay import Ledger, Replay, Watcher, leaves_of
from prunekit.importance.view import READINGS, Reading
from prunekit.ranks import Ranks
from prunekit.types import Group, IntArray

AT_ONCE = 2**18
"""Values that are turned into float64 at once, in three copies."""


class Moments:
    """Sums over what one operator reads, per index, in float64."""

    def __init__(self, point: Point, size: int) -> None:
        self.where = point.where
        self.sums = torch.zeros(5, size, dtype=torch.float64)
        self.weights: Tensor | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of the sums, of those over the weights too."""
        return 7 * self.sums.shape[1] * 8

    @torch.no_grad()
    def update(self, point: Point, values: Mapping[Node, Any]) -> None:
        """Take in one forward pass.

        Raises:
            CalibrationError: what the operator reads holds NaN or infinity, or lost its batch.
        """
        value: Tensor = values[point.observed].detach()
        if value.ndim != point.observed.meta["val"].ndim:
            raise CalibrationError(
                f"With one example it reads {value.ndim} dimensions, with several "
                f"{point.observed.meta['val'].ndim}",
                where=point.where,
                remedy="Give batches of two or more examples",
            )
        value = value.abs() if value.is_complex() else value
        behind = tuple(range(value.ndim - len(point.index), value.ndim))
        width = int(np.prod([value.shape[dim] for dim in point.index]))
        rows = value.movedim(point.index, behind).reshape(-1, width)
        ends = None if point.read is None or point.read.ends is None else values[point.read.ends]
        starts = [0] if ends is None else [0, *ends.tolist()[:-1]]
        stops = [len(rows)] if ends is None else ends.tolist()
        if self.sums.device != rows.device:
            self.sums = self.sums.to(rows.device)
        into = self.sums.view(5, len(starts), -1)
        for segment, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            for piece in rows[int(start) : int(stop)].split(max(1, AT_ONCE // rows.shape[1])):
                into[:, segment] += _sums(piece)
        if not torch.isfinite(self.sums).all():
            raise CalibrationError(
                "The activations that it reads hold NaN or infinity",
                where=point.where,
                remedy="Look for NaN in the data or the weights, or calibrate in float32",
            )
        if self.weights is None and point.read is not None:
            self.weights = _weigh(point.read.arrange(values[point.read.weight].detach()))

    def pool(self, ranks: Ranks, point: Point) -> None:
        """Add what the other processes took in; one that saw nothing learns the weights."""
        self.sums = ranks.sum(self.sums, f"readings of {self.where}")
        if point.read is not None:
            mine = self.sums.new_zeros(2, self.sums.shape[1]) if self.weights is None else self.weights
            self.weights = ranks.largest(mine, f"weights of {self.where}")

    def reading(self, units: IntArray) -> Reading:
        """What was seen, for the group whose units these are."""
        count, total, magnitude, squares, zeros = self.sums.cpu().numpy()
        weights = None if self.weights is None else self.weights.cpu().numpy()
        return Reading(
            where=self.where,
            units=units,
            count=count,
            total=total,
            magnitude=magnitude,
            squares=squares,
            zeros=zeros,
            weight_magnitude=None if weights is None else weights[0],
            weight_squares=None if weights is None else weights[1],
        )


class Observer:
    """Gathers activations batch by batch.

    Inputs of another shape than the example's are traced again, once per shape, and must lead to the same
    groups.

    Args:
        model: the model the groups were found on, its weights as they are now.
        groups: the groups that will be scored.
        needs: the statistics, among ``readings``, ``expert_output`` and those of layers.
        ledger: counts what is held.
        lending: of a sharded model, what lends its parameters whole.

    Raises:
        ShapeError: the groups were found on another model.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        needs: Collection[str],
        ledger: Ledger,
        lending: Lending | None = None,
    ) -> None:
        self.ledger = ledger
        self._model, self._groups, self._lending = model, groups, lending
        points = points_of(groups)
        self._layout = _layout(points)
        sizes = [next(iter(point.units.values())).size for point in points]
        reading = READINGS in needs
        self._moments = [Moments(p, n) for p, n in zip(points, sizes, strict=True)] if reading else []
        self._points = points
        mixtures = mixtures_of(groups, points) if EXPERT_OUTPUT in needs else []
        self._experts = {mixture.group: ExpertOutputs(mixture.experts) for mixture in mixtures}
        self.layers = LayerEffects(groups, needs)
        self._bypasses = BYPASS_LOSS in needs
        self.state_bytes = sum(moments.state_bytes for moments in self._moments) + 3 * 8 * AT_ONCE
        self._scenes = [_Scene(groups, self._replay(groups, points))]

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model on a whole batch and give its outputs, ready to be differentiated."""
        scene, leaves = self._scene(args, kwargs)
        return scene.replay.forward_on(leaves, self.ledger)

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the model on a batch, in as many pieces as the memory limit asks for; outputs are dropped."""
        scene, leaves = self._scene(args, kwargs)
        limit, state = self.ledger.limit, self.state_bytes
        with torch.no_grad():
            for start, stop in _pieces(scene, leaves, limit, state):
                piece = [
                    leaf[start:stop] if is_open else leaf
                    for leaf, is_open in zip(leaves, scene.groups.graph.open_inputs, strict=True)
                ]
                self.ledger.start(state)
                scene.replay.forward_on(piece, self.ledger)
                scene.bytes_per_example = (self.ledger.since - state) / (stop - start)

    def finish_batch(self, batch: Any, loss: Callable[[Any, Any], Tensor] | None, number: int) -> None:
        """What is left to do once a batch has been seen: the loss without each layer, where it was asked for.

        Raises:
            CalibrationError: a loss is not finite.
        """
        self.layers.differentiated()
        if self._bypasses:
            assert loss is not None
            scene, leaves = self._scene(tuple(batch.args), batch.kwargs)
            self.ledger.start(self.state_bytes)

            def loss_of(outputs: Any) -> float:
                return _finite(float(loss(outputs, batch)), number)

            self.layers.bypass(scene.replay, scene.groups, leaves, loss_of, self.ledger)

    def pool(self, ranks: Ranks) -> None:
        """Add what the other processes took in, from rank 0 upwards."""
        for moments, point in zip(self._moments, self._points, strict=bool(self._moments)):
            moments.pool(ranks, point)
        for found in self._experts.values():
            found.pool(ranks)
        self.layers.pool(ranks)

    def readings(self) -> dict[str, tuple[Reading, ...]]:
        """What was seen, by group name; an empty tuple for a group that could not be observed."""
        seen = list(zip(self._moments, self._points, strict=True)) if self._moments else []
        return {
            group.name: tuple(
                moments.reading(point.units[group.name])
                for moments, point in seen
                if group.name in point.units
            )
            for group in self._groups
        }

    def expert_outputs(self) -> dict[str, np.ndarray]:
        """``[units]`` by the name of each group of routed experts."""
        return {name: found.finish() for name, found in self._experts.items()}

    def _replay(self, groups: Groups, points: list[Point]) -> Replay:
        watchers = self.layers.watchers(groups, self.ledger)
        keep: dict[Node, Node] = {}
        for moments, point in zip(self._moments, points, strict=bool(self._moments)):
            watchers.setdefault(point.after, []).append(self._watch(moments, point))
        for mixture in mixtures_of(groups, points) if self._experts else ():
            found = self._experts[mixture.group]
            watchers.setdefault(mixture.start, []).append(lambda v, m=mixture, e=found: self._hold(e, m, v))
            watchers.setdefault(mixture.end, []).append(lambda v, m=mixture, e=found: self._compare(e, m, v))
            keep |= dict.fromkeys(mixture.needs, mixture.end)
            if mixture.ends is not None:
                keep[mixture.ends] = mixture.end
        return Replay(groups.graph, _tensors(self._model, groups), watchers, keep, self._lending)

    def _watch(self, moments: Moments, point: Point) -> Watcher:
        def watch(values: Mapping[Node, Any]) -> None:
            self.ledger.charge(values[point.observed].nbytes, point.after.name)
            moments.update(point, values)

        return watch

    def _hold(self, found: ExpertOutputs, mixture: Mixture, values: Mapping[Node, Any]) -> None:
        self.ledger.add(found.hold(mixture, values), mixture.start.name)

    def _compare(self, found: ExpertOutputs, mixture: Mixture, values: Mapping[Node, Any]) -> None:
        self.ledger.charge(found.working_bytes, mixture.end.name)
        self.ledger.remove(found.update(mixture, values))

    def _scene(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[_Scene, list[Any]]:
        """The graph that takes these inputs, and the inputs as it takes them."""
        for scene in self._scenes:
            leaves = leaves_of(scene.groups.graph, args, kwargs)
            if leaves is not None:
                return scene, leaves
        if self._lending is not None:
            raise CalibrationError(
                f"A batch has the shapes {_shapes(args, kwargs)}, and a sharded model cannot be traced again",
                expected="batches of the example's shape, with any number of examples",
                where="calibration",
                remedy="Pad or cut the batches, or trace with an example as long or as large as they are",
            )
        graph = self._groups.graph
        released = [glob.escape(graph.outputs[place]) for place in sorted(graph.released)]
        found = find_groups(trace(self._model, args, kwargs, release=released))
        wanted = {group.name for group in self._groups}
        found = found.freeze(
            {g.name: "not scored" for g in found if g.name not in wanted}, operator="scoring"
        )
        points = points_of(found)
        leaves = leaves_of(found.graph, args, kwargs)
        if leaves is None or not _same(self._groups, found) or _layout(points) != self._layout:
            raise CalibrationError(
                f"A batch of the shapes {_shapes(args, kwargs)} leads to other groups",
                expected="batches like the example that the groups were found with",
                where="calibration",
                remedy="Trace the model with an example as long or as large as the calibration data",
            )
        self._scenes.append(_Scene(found, self._replay(found, points)))
        return self._scenes[-1], leaves


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _tensors(model: nn.Module, groups: Groups) -> dict[str, Tensor]:
    """Every tensor that the graph reads and the model holds, plain attributes included, by qualified name."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found |= dict(model.named_buffers(remove_duplicate=False))
    for name in set(groups.graph.tensors.values()) - found.keys():
        value: Any = model
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, Tensor):
            found[name] = value
    return found


class _Scene:
    """One shape of inputs: the groups found with it, and what runs its graph."""

    def __init__(self, groups: Groups, replay: Replay) -> None:
        self.groups = groups
        self.replay = replay
        self.bytes_per_example = 0.0


def _pieces(scene: _Scene, leaves: list[Any], limit: int | None, state: int) -> Iterator[tuple[int, int]]:
    """From where to where each piece of a batch goes: two examples first, then as many as fit.

    A graph with an open batch was traced for two or more, so no piece has one unless the batch has.
    """
    first = [leaf for leaf, is_open in zip(leaves, scene.groups.graph.open_inputs, strict=True) if is_open]
    examples = len(first[0]) if first else 1
    start = 0
    while start < examples:
        step = examples
        if limit is not None and first:
            step = 2 if not scene.bytes_per_example else int(0.9 * (limit - state) / scene.bytes_per_example)
        stop = min(examples, start + max(2, step))
        stop = examples if stop == examples - 1 else stop
        yield start, stop
        start = stop


def _layout(points: list[Point]) -> list[tuple[str, dict[str, bytes]]]:
    """What has to be equal where sums over several shapes are added."""
    return [(point.where, {n: units.tobytes() for n, units in point.units.items()}) for point in points]


def _same(wanted: Groups, found: Groups) -> bool:
    return [_described(group) for group in wanted] == [_described(group) for group in found]


def _described(group: Group) -> tuple[Any, ...]:
    slices = tuple((part.tensor, part.dim, part.role, part.units.tobytes()) for part in group.slices)
    return group.name, group.size, group.blocks, slices


def check_traced(groups: object, why: str) -> Groups:
    """Return groups that know the graph they were found in.

    Args:
        groups: what was given.
        why: what needs the graph.

    Raises:
        SelectionError: they are groups alone.
    """
    if isinstance(groups, Groups):
        return groups
    raise SelectionError(
        f"{why}, and a {type(groups).__name__} was given",
        expected="the groups as find_groups gives them, with the graph they were found in",
        where="groups",
        remedy="Narrow them with select() or freeze(), not with a list",
    )


def _sums(rows: Tensor) -> Tensor:
    """``[5, n]`` count, sum, sum of magnitudes, sum of squares and number of zeros of ``[rows, n]``."""
    exact = rows.double()
    count = torch.full((rows.shape[1],), float(len(rows)), dtype=torch.float64, device=rows.device)
    zeros = (rows == 0).sum(dim=0).double()
    return torch.stack([count, exact.sum(0), exact.abs().sum(0), exact.square().sum(0), zeros])


def _weigh(weight: Tensor) -> Tensor:
    """``[2, n]`` sum of magnitudes and of squares of ``[*n, rest]``."""
    flat = (weight.abs() if weight.is_complex() else weight).flatten(0, -2)
    pieces = [piece.double() for piece in flat.split(max(1, AT_ONCE // max(1, flat.shape[1])))]
    return torch.cat([torch.stack([p.abs().sum(1), p.square().sum(1)]) for p in pieces], dim=1)


def _finite(value: float, number: int) -> float:
    if not math.isfinite(value):
        raise CalibrationError(
            f"It is {value} with a layer left out",
            expected="a finite number",
            where=f"loss of calibration batch {number}",
            remedy="Score layers by block_influence, which needs no loss",
        )
    return value
