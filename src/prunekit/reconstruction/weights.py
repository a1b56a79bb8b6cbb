"""Removing single weights and updating the others of their rows, layer after layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.errors import SelectionError
from prunekit.graph import Graph
from prunekit.graph.nodes import is_written_to, operator_name, static_nodes
from prunekit.importance.calibration import ModelInputs
from prunekit.importance.untouched import untouched
from prunekit.plan import MaskPlan, PackedMask
from prunekit.reconstruction.batches import leaves_of_batches
from prunekit.reconstruction.decision import Decision
from prunekit.reconstruction.layers import Layer, layer_of
from prunekit.reconstruction.least_squares import errors_of
from prunekit.reconstruction.moments import Gram, check_new
from prunekit.reconstruction.places import Place, Readers, behind, model_tensors, place_of, unfit
from prunekit.reconstruction.result import LayerChange, LeftAlone, Reconstruction
from prunekit.reconstruction.shared import Shared
from prunekit.reconstruction.sparsegpt import Choice, Sweep, Swept, sparsegpt
from prunekit.reconstruction.stream import Stream, stages
from prunekit.surgery.tensors import copied, read
from prunekit.types import lies_in


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


def reconstruct_weights(
    model: nn.Module,
    graph: Graph,
    choice: Choice | MaskPlan | Mapping[str, Tensor],
    calibration: Iterable[ModelInputs],
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
        choice: what to choose in every layer; a plan of masks; or by parameter the mask in its shape, bool,
            True = keep.
        calibration: batches on the model's device, shaped like the example of the trace; never test data.
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
        The new model, with exact zeros, and the plan of its masks.

    Raises:
        CalibrationError: no batches, or shaped unlike the example; NaN or infinity in what a layer reads.
        PlanError: a plan of another model.
        SelectionError: masks for what is no layer's weight; patterns that match none, or beside masks;
            nothing to do; something else than a choice, masks, or a sweep.
        ShapeError: masks of another shape or dtype; N:M over inputs that do not divide by M; the graph of
            another model.

    Source: Frantar & Alistarh, 2023, https://arxiv.org/abs/2301.00774; see :func:`sparsegpt`.
    """
    if sweep is not None and not isinstance(sweep, Sweep):
        raise SelectionError(f"It is a {type(sweep).__name__}", expected="a Sweep, or None", where="sweep")
    if products not in (torch.float32, torch.float64):
        raise SelectionError(f"It is {products}", expected="torch.float32 or torch.float64", where="products")
    decision = Decision.of(choice, model, graph.tied)
    work = _Work(model, graph, decision, (only, ignore))
    leaves = leaves_of_batches(graph, calibration)
    with torch.inference_mode(False), untouched(model, ()), torch.no_grad():
        work.model = model if in_place else copied(model)
        layers, peak = work.run(leaves, sweep or Sweep(), sequential, compensate_bias, products)
        plan = decision.planned(work.model, work.masks)
    return Reconstruction(work.model, tuple(layers), tuple(work.left_alone), plan, peak)


class _Work:
    """The layers of one graph and what is given for them; checked before anything runs."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        decision: Decision,
        patterns: tuple[str | Sequence[str], str | Sequence[str]],
    ) -> None:
        self.model, self._graph, self._decision = model, graph, decision
        own = model_tensors(model, graph)
        self.masks: dict[str, PackedMask] = {}
        self.left_alone: list[LeftAlone] = []
        self.targets: list[_Target] = []
        static = static_nodes(graph.nodes, lambda node: node.name in graph.tensors)
        self._readers = Readers(static, self._name_of)
        layers = [layer for node in graph.nodes if (layer := layer_of(node, static)) is not None]
        read_by = {layer: behind(layer.weight, self._name_of) for layer in layers}
        others = [
            graph.tied.get(name, name)
            for placeholder, name in graph.tensors.items()
            if name in graph.trainable and own[placeholder].ndim > 1
        ]
        wanted = self._wanted(list(dict.fromkeys((*read_by.values(), *others))), patterns)
        for layer in layers:
            if read_by[layer] in wanted:
                self._take(layer, read_by[layer])
        known = {target.place.name for target in self.targets} | {item.tensor for item in self.left_alone}
        for name in wanted:
            if name in others and name not in known:
                self._leave(name, self._readers.unknown(name))
        self._check()

    def _name_of(self, node: Node) -> str | None:
        name = self._graph.tensors.get(node.name)
        return None if name is None else self._graph.tied.get(name, name)

    def _tensor(self, name: str) -> Tensor:
        found = read(self.model, name)
        return self._graph.tensor(name) if found is None else found

    def _leave(self, name: str, reason: str) -> None:
        if LeftAlone(name, reason) not in self.left_alone:
            self.left_alone.append(LeftAlone(name, reason))

    def _wanted(
        self, names: list[str], patterns: tuple[str | Sequence[str], str | Sequence[str]]
    ) -> list[str]:
        """Those of the names that are to be swept, by any name that they have."""
        only, ignore = ((item,) if isinstance(item, str) else tuple(item) for item in patterns)
        if self._decision.choice is None:
            if only or ignore:
                raise SelectionError(
                    "Masks say themselves which layers are swept",
                    expected="patterns beside a choice only",
                    where="only or ignore",
                    remedy="Leave masks out instead",
                )
            return [name for name in names if name in self._decision.masks]
        places = {name: [name] for name in names}
        for name, first in self._graph.tied.items():
            places.get(first, []).append(name)

        def matches(name: str, pattern: str) -> bool:
            return any(lies_in(place, pattern) for place in places[name])

        for pattern in (*only, *ignore):
            if not any(matches(name, pattern) for name in names):
                raise SelectionError(
                    f"The pattern {pattern!r} matches no layer's weight",
                    expected=f"a shell-style pattern of one of {', '.join(names[:5])}",
                    where="only or ignore",
                )
        chosen = [name for name in names if not only or any(matches(name, item) for item in only)]
        return [name for name in chosen if not any(matches(name, item) for item in ignore)]

    def _take(self, layer: Layer, name: str) -> None:
        place = place_of(layer.weight, self._name_of)
        reason = unfit(read(self.model, name))
        if reason or isinstance(place, str):
            self._leave(name, reason or str(place))
            return
        tensor = self._tensor(name)
        if layer.weight.meta["val"].numel() != tensor.numel():
            reason = "only a part of it is read"
        reason = reason or self._readers.objection(place, layer.node, tensor.shape)
        if reason:
            self._leave(name, reason)
            return
        self.targets.append(_Target(layer, place, self._bias(layer)))

    def _bias(self, layer: Layer) -> Place | None:
        """Where the bias lies, if it may be changed."""
        place = None if layer.bias is None else place_of(layer.bias, self._name_of)
        if not isinstance(place, Place) or place.chain or unfit(read(self.model, place.name)):
            return None
        tensor = self._tensor(place.name)
        groups, outputs, _ = layer.form.to_matrix(layer.weight.meta["val"]).shape
        fits = tensor.shape == (groups * outputs,)
        return place if fits and not self._readers.objection(place, layer.node, tensor.shape) else None

    def _check(self) -> None:
        """What is given fits what was found."""
        reasons = {item.tensor: item.reason for item in self.left_alone}
        swept = {target.place.name: target for target in self.targets}
        self._decision.check_masks(
            {name: self._tensor(name).shape for name in swept},
            lambda name: reasons.get(name, "no layer reads it"),
        )
        for name, target in swept.items():
            if self._choice is not None:
                self._choice.check_inputs(self._matrix(target).shape[2], name)
        if not self.targets:
            said = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
            raise SelectionError(
                "There is no layer whose weights could be reconstructed" + (f" ({said})" if said else ""),
                where="model",
            )

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
            moments = Shared(grams.pop(key), self._choice, sweep, bias)
            for target in targets:
                if _key(target) == key:
                    found[target] = self._update(target, moments, bias)
        return [found[target] for target in targets]

    @property
    def _choice(self) -> Choice | None:
        return self._decision.choice

    def _update(self, target: _Target, moments: Shared, with_bias: bool) -> LayerChange:
        gram, sweep = moments.gram, moments.sweep
        dense = self._matrix(target).clone()
        centre = with_bias and target.bias is not None
        masks = self._mask_of(target)
        each = (
            [None] * len(dense)
            if self._choice is None
            else self._choice.of_each(len(dense), dense[0].numel())
        )
        swept: list[Swept] = []
        before = wanted = 0.0
        for group, matrix in enumerate(dense):
            found = sparsegpt(
                matrix,
                moments.prepared(group, centre),
                choice=each[group],
                keep=None if masks is None else masks[group],
                sweep=sweep,
            )
            wide, plain = matrix.to(gram.products), moments.plain(group)
            wanted += float(errors_of(wide, plain).sum())
            lost = errors_of(wide.masked_fill(found.keep, 0.0), plain).sum() if centre else None
            before += found.solution.before if lost is None else float(lost)
            swept.append(found)
        new = torch.stack([found.solution.weight for found in swept]).to(dense.dtype)
        check_new(new, gram.where)
        kept = torch.stack([found.keep for found in swept])
        self._write(target, dense, new, kept, moments.means if centre else None)
        after = sum(found.solution.after for found in swept)
        used = max(found.solution.damping for found in swept)
        return LayerChange(
            name=target.place.name,
            operator=operator_name(target.layer.node),
            before=before / wanted if wanted else 0.0,
            after=min(before, after) / wanted if wanted else 0.0,
            damping=used,
            dampened_more=used > sweep.damping,
            bias=centre,
            rows=gram.count,
            inputs=dense.shape[2],
        )

    def _mask_of(self, target: _Target) -> Tensor | None:
        if self._choice is not None:
            return None
        mask = self._decision.mask(target.place.name).to(self._tensor(target.place.name).device)
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
            tensor = self._tensor(target.bias.name)
            tensor.copy_(tensor + shift)
            check_new(tensor, target.bias.name)


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
