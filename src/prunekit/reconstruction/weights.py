"""Removing single weights and updating the others of their rows, layer after layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.graph import Graph
from prunekit.graph.nodes import is_written_to, operator_name
from prunekit.importance.untouched import untouched
from prunekit.plan import MaskPlan, PackedMask
from prunekit.reconstruction.batches import ModelInputs, leaves_of_batches
from prunekit.reconstruction.layers import Layer, layer_of, static_nodes
from prunekit.reconstruction.least_squares import Solution, errors_of
from prunekit.reconstruction.moments import Gram
from prunekit.reconstruction.places import Place, Readers, place_of
from prunekit.reconstruction.result import LayerChange, LeftAlone, Reconstruction
from prunekit.reconstruction.sparsegpt import Choice, Prepared, Sweep, prepare, sparsegpt
from prunekit.reconstruction.stream import Stream, is_parameter, stages
from prunekit.surgery.tensors import copied, read


@dataclass(frozen=True, eq=False)
class _Target:
    """A layer whose weights are swept.

    Attributes:
        layer: in the traced graph.
        place: of its weight, a whole parameter.
        bias: of its bias, where it may be changed.
    """

    layer: Layer
    place: Place
    bias: Place | None


class _Moments:
    """The second moments of what some layers read, and their factors, made when they are asked for.

    Args:
        gram: of all batches.
        choice: what goes, or None where masks are given.
        sweep: how it goes.
        centring: the inputs of some layers will be centred.

    Attributes:
        means: of the inputs, ``[groups, in]``.
    """

    def __init__(self, gram: Gram, choice: Choice | None, sweep: Sweep, centring: bool) -> None:
        self.gram, self.sweep, self._choice = gram, sweep, choice
        self._moments, self.means = gram.finish()
        if not centring:
            self._moments = gram.release().to(gram.products)
        self._ready: dict[tuple[int, bool], Prepared] = {}

    def plain(self, group: int) -> Tensor:
        """``[in, in]``, in the dtype of the products."""
        ready = self._ready.get((group, False))
        return self._moments[group].to(self.gram.products) if ready is None else ready.moment

    def prepared(self, group: int, centre: bool) -> Prepared:
        """For the sweep; of inputs less their means where they are to be centred."""
        if (group, centre) not in self._ready:
            moment = self._moments[group]
            if centre:
                moment = moment - self.gram.count * torch.outer(self.means[group], self.means[group])
            ready = prepare(moment.to(self.gram.products), self._choice, self.sweep)
            self._ready[group, centre] = ready
        return self._ready[group, centre]


def reconstruct_weights(
    model: nn.Module,
    graph: Graph,
    calibration: Iterable[ModelInputs],
    given: Mapping[str, Tensor] | MaskPlan | Choice,
    *,
    sweep: Sweep | None = None,
    sequential: bool = True,
    only: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    compensate_bias: bool = False,
    products: torch.dtype = torch.float32,
    in_place: bool = False,
) -> Reconstruction:
    """Zero weights of linear layers and convolutions and update the others by SparseGPT; no training.

    With masks nothing is decided here. With a :class:`Choice` the weights of a layer are chosen in its own
    sweep, because that needs what the layers before it give once they are pruned; the masks are in the
    result, so that the same decision can be carried out elsewhere.

    All batches go through the model side by side, stage by stage, so that each operator runs once per batch,
    and layers that read the same tensor share its second moments. Held at once: what later stages read of all
    batches (of a decoder: one hidden state, and what its masks and positions need), and ``in * in`` float64
    for the layers of one stage; parallel, for all layers, but the activations of one batch only. The sweep
    runs in the dtype of the products, in float64 where the moments need more dampening than was asked.

    Args:
        model: left as it is, unless ``in_place``.
        graph: its trace.
        calibration: batches on the model's device, shaped like the example of the trace; never test data.
        given: by parameter the mask in its shape, bool, True = keep; a plan that has them; or what to choose
            in every layer.
        sweep: order, block sizes, dampening.
        sequential: each layer reads what the layers before it give once they are pruned; else what the dense
            model gives.
        only: shell-style patterns of the parameters or modules around them; with a choice.
        ignore: patterns of what to leave alone, such as ``lm_head``; with a choice.
        compensate_bias: let biases take up what is constant in the change of the outputs.
        products: dtype in which some rows at a time are multiplied for the second moments, unless the model's
            is wider; they are added up in float64, so that how the data is cut into batches changes moments
            by a few units of that dtype's precision, and weights whose scores are that close may swap.
        in_place: change the model that is given, so that a large one is held once; an error on the way leaves
            it changed in part.

    Returns:
        The new model, with exact zeros, and the masks.

    Raises:
        CalibrationError: no batches, or shaped unlike the example; NaN or infinity in what a layer reads.
        SelectionError: masks for what is no layer's weight; patterns that match none; nothing to do.
        ShapeError: masks of another shape or dtype; N:M over inputs that do not divide by M.

    Source: Frantar & Alistarh, 2023, https://arxiv.org/abs/2301.00774; see :func:`sparsegpt`.
    """
    sweep = sweep or Sweep()
    leaves = leaves_of_batches(graph, calibration)
    work = _Work(model, graph, given.masks if isinstance(given, MaskPlan) else given, (only, ignore))
    work.model = model if in_place else copied(model)
    with torch.inference_mode(False), untouched(model, ()), torch.no_grad():
        layers, peak = work.run(leaves, sweep, sequential, compensate_bias, products)
    return Reconstruction(work.model, tuple(layers), tuple(work.left_alone), work.masks, peak)


class _Work:
    """The layers of one graph and what is given for them; checked before anything runs."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        given: Mapping[str, Tensor] | Mapping[str, PackedMask] | Choice,
        patterns: tuple[str | Sequence[str], str | Sequence[str]],
    ) -> None:
        self.model, self._graph, self._given = model, graph, given
        self.masks: dict[str, PackedMask] = {}
        self.left_alone: list[LeftAlone] = []
        self.targets: list[_Target] = []
        static = static_nodes(graph.nodes, lambda node: node.name in graph.tensors)
        self._readers = Readers(static, self._name_of)
        layers = [layer for node in graph.nodes if (layer := layer_of(node, static)) is not None]
        found = [(layer, place_of(layer.weight, self._name_of)) for layer in layers]
        names = [place.name for _, place in found if isinstance(place, Place)]
        wanted = self._wanted(names, patterns)
        for layer, place in found:
            if isinstance(place, str):
                self.left_alone.append(LeftAlone(layer.node.name, place))
            elif place.name in wanted:
                self._take(layer, place)
        self._check()

    def _name_of(self, node: Node) -> str | None:
        name = self._graph.tensors.get(node.name)
        return None if name is None else self._graph.tied.get(name, name)

    def _tensor(self, name: str) -> Tensor:
        found = read(self.model, name)
        return self._graph.tensor(name) if found is None else found

    def _wanted(
        self, names: list[str], patterns: tuple[str | Sequence[str], str | Sequence[str]]
    ) -> set[str]:
        if not isinstance(self._given, Choice):
            return {self._graph.tied.get(name, name) for name in self._given}
        only, ignore = ((item,) if isinstance(item, str) else tuple(item) for item in patterns)
        every = {name: [name] for name in names}
        for tied, first in self._graph.tied.items():
            every.get(first, []).append(tied)

        def match(name: str, patterns: tuple[str, ...]) -> bool:
            return any(_matches(place, pattern) for place in every[name] for pattern in patterns)

        for pattern in (*only, *ignore):
            if not any(match(name, (pattern,)) for name in names):
                raise SelectionError(
                    f"The pattern {pattern!r} matches no layer's weight",
                    expected=f"a shell-style pattern of one of {', '.join(names[:5])}",
                    where="only or ignore",
                )
        return {name for name in names if (not only or match(name, only)) and not match(name, ignore)}

    def _take(self, layer: Layer, place: Place) -> None:
        tensor = self._tensor(place.name)
        reason = "" if is_parameter(tensor) else "it holds no real floating-point numbers"
        if not reason and place.chain and set(map(operator_name, place.chain)) - _TURNS:
            reason = "only a part of it is read"
        reason = reason or self._readers.objection(place, layer.node, tensor.shape)
        if reason:
            self.left_alone.append(LeftAlone(place.name, reason))
            return
        self.targets.append(_Target(layer, place, self._bias(layer)))

    def _bias(self, layer: Layer) -> Place | None:
        """Where the bias lies, if it may be changed."""
        place = None if layer.bias is None else place_of(layer.bias, self._name_of)
        if not isinstance(place, Place) or place.chain:
            return None
        tensor = self._tensor(place.name)
        is_own = tensor.ndim == 1 and not self._readers.objection(place, layer.node, tensor.shape)
        return place if is_own else None

    def _check(self) -> None:
        """What is given fits what was found."""
        known = {target.place.name: target for target in self.targets}
        if isinstance(self._given, Choice):
            for name, target in known.items():
                self._given.check_inputs(self._matrix(target).shape[2], name)
        else:
            reasons = {item.tensor: item.reason for item in self.left_alone}
            for name in self._given:
                target = known.get(self._graph.tied.get(name, name))
                if target is None:
                    raise SelectionError(
                        f"Its mask cannot be reconstructed: {reasons.get(name, 'no layer reads it')}",
                        expected="the weight of a linear layer or convolution",
                        where=name,
                        remedy="Zero it by itself, and give the other masks",
                    )
                shape, mask = self._tensor(name).shape, unpacked(self._given[name])
                if mask.dtype != torch.bool or mask.shape != shape:
                    raise ShapeError(
                        f"Its mask has the shape {list(mask.shape)} and the dtype {mask.dtype}",
                        expected=f"{list(shape)} of torch.bool",
                        where=name,
                    )
        if not self.targets:
            raise SelectionError("There is no layer whose weights could be reconstructed", where="given")

    def _matrix(self, target: _Target) -> Tensor:
        tensor = self._tensor(target.place.name).detach()
        return target.layer.form.to_matrix(target.place.apply(tensor))

    # --- Running -----------------------------------------------------------------------------------------

    def run(
        self, leaves: list[list[Any]], sweep: Sweep, sequential: bool, bias: bool, products: torch.dtype
    ) -> tuple[list[LayerChange], int]:
        """Stage by stage; parallel, one batch after another."""
        nodes = {target.layer.node for target in self.targets}
        stage = stages(self._graph.nodes, nodes) if sequential else {}
        grams: dict[tuple[Any, ...], Gram] = {}
        layers: list[LayerChange] = []
        peak = 0
        if not sequential:
            self._share(self.targets, grams, products)
            first = {_key(target): target for target in reversed(self.targets)}
            watchers = {target.layer.node: partial(_add_all, [target], grams) for target in first.values()}
            for one in leaves:
                self._stream(stage, [one]).advance(0, 0, watchers)
            peak = sum(gram.nbytes for gram in grams.values())
            return self._update_all(self.targets, grams, sweep, bias), peak
        stream = self._stream(stage, leaves)
        for now in range(max((stage[node.name] for node in nodes), default=0)):
            due = [target for target in self.targets if stage[target.layer.node.name] == now + 1]
            self._share(due, grams, products)
            for batch in range(len(leaves)):
                _add_all(due, grams, stream.advance(batch, now, {}))
            peak = max(peak, stream.held_bytes + sum(gram.nbytes for gram in grams.values()))
            layers += self._update_all(due, grams, sweep, bias)
        return layers, peak

    def _stream(self, stage: Mapping[str, int], leaves: list[list[Any]]) -> Stream:
        def tensor_of(node: Node) -> Tensor | None:
            name = self._graph.tensors.get(node.name)
            return None if name is None else self._tensor(name)

        return Stream(self._graph.program.graph_module, tensor_of, stage, leaves)

    def _share(
        self, targets: list[_Target], grams: dict[tuple[Any, ...], Gram], products: torch.dtype
    ) -> None:
        for target in targets:
            grams.setdefault(_key(target), Gram(target.place.name, products))

    def _update_all(
        self, targets: list[_Target], grams: dict[tuple[Any, ...], Gram], sweep: Sweep, bias: bool
    ) -> list[LayerChange]:
        """Layers that read the same numbers together, so that these are factored once and then let go."""
        found: dict[_Target, LayerChange] = {}
        for key in dict.fromkeys(map(_key, targets)):
            moments = _Moments(grams.pop(key), self._choice, sweep, bias)
            for target in targets:
                if _key(target) == key:
                    found[target] = self._update(target, moments, bias)
        return [found[target] for target in targets]

    @property
    def _choice(self) -> Choice | None:
        return self._given if isinstance(self._given, Choice) else None

    def _update(self, target: _Target, moments: _Moments, with_bias: bool) -> LayerChange:
        gram, sweep = moments.gram, moments.sweep
        dense = self._matrix(target).clone()
        centre = with_bias and target.bias is not None
        masks = self._mask_of(target)
        solutions: list[Solution] = []
        kept: list[Tensor] = []
        wanted = 0.0
        for group, matrix in enumerate(dense):
            wanted += float(errors_of(matrix.to(gram.products), moments.plain(group)).sum())
            swept = sparsegpt(
                matrix,
                moments.prepared(group, centre),
                choice=self._choice,
                keep=None if masks is None else masks[group],
                sweep=sweep,
            )
            solutions.append(swept.solution)
            kept.append(swept.keep)
        new = torch.stack([solution.weight for solution in solutions]).to(dense.dtype)
        if not torch.isfinite(new).all():
            raise CalibrationError("Its new weights hold NaN or infinity", where=gram.where)
        self._write(target, dense, new, torch.stack(kept), moments.means if centre else None)
        before, after = (sum(getattr(item, name) for item in solutions) for name in ("before", "after"))
        used = max(solution.damping for solution in solutions)
        return LayerChange(
            name=target.place.name,
            operator=operator_name(target.layer.node),
            before=before / wanted if wanted else 0.0,
            after=after / wanted if wanted else 0.0,
            damping=used,
            dampened_more=used > sweep.damping,
            bias=centre,
            rows=gram.count,
        )

    def _mask_of(self, target: _Target) -> Tensor | None:
        if isinstance(self._given, Choice):
            return None
        names = {self._graph.tied.get(name, name): name for name in self._given}
        mask = unpacked(self._given[names[target.place.name]]).to(self._tensor(target.place.name).device)
        return target.layer.form.to_matrix(target.place.apply(mask))

    def _write(self, target: _Target, dense: Tensor, new: Tensor, kept: Tensor, means: Tensor | None) -> None:
        tensor = self._tensor(target.place.name)
        shape = target.place.apply(tensor).shape
        target.place.write(tensor, target.layer.form.from_matrix(new, shape))
        mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        target.place.write(mask, target.layer.form.from_matrix(kept, shape))
        self.masks[target.place.name] = PackedMask.of(mask.cpu().numpy())
        if means is not None and target.bias is not None:
            shift = ((dense - new).double() @ means[:, :, None]).flatten()
            self._tensor(target.bias.name).add_(shift)


_TURNS = frozenset({"aten.t", "aten.transpose", "aten.permute", "aten.numpy_T", "aten.detach", "aten.alias"})
"""What leaves all of a parameter to be read."""


def unpacked(mask: Tensor | PackedMask) -> Tensor:
    """The mask itself: bool, True = keep."""
    return torch.from_numpy(mask.keep()) if isinstance(mask, PackedMask) else mask


def _key(target: _Target) -> tuple[Any, ...]:
    """Equal for layers that read the same numbers: of a tensor that is written to, only one."""
    source = target.layer.source
    return (source, target.layer.form.key, target.layer.node if is_written_to(source) else None)


def _add_all(
    targets: list[_Target], grams: Mapping[tuple[Any, ...], Gram], values: Mapping[Node, Tensor]
) -> None:
    """Take one batch in, once for all layers that read the same."""
    done: set[tuple[Any, ...]] = set()
    for target in targets:
        key = _key(target)
        if key not in done:
            done.add(key)
            for rows, _ in target.layer.form.pieces(values[target.layer.source], None):
                grams[key].add(rows)


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
