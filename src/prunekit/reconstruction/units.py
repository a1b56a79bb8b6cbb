"""Reconstruction after units were removed: what read them is updated to give what the dense model gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from prunekit.errors import ShapeError
from prunekit.graph import Groups
from prunekit.graph.atoms import Fixed
from prunekit.graph.nodes import bind, operator_name, static_nodes
from prunekit.graph.pruned_graph import PrunedGraph, attribute
from prunekit.importance.calibration import ModelInputs
from prunekit.importance.untouched import untouched
from prunekit.plan import PruningPlan
from prunekit.reconstruction.batches import leaves_of_batches
from prunekit.reconstruction.damping import DAMPING, check_damping, for_rows
from prunekit.reconstruction.layers import Layer, layer_of
from prunekit.reconstruction.least_squares import correct
from prunekit.reconstruction.moments import Gram, Residual, centred, check_finite, check_new
from prunekit.reconstruction.places import Place, Readers, behind, model_tensors, place_of, unfit
from prunekit.reconstruction.result import LayerChange, LeftAlone, Reconstruction
from prunekit.reconstruction.stream import Stream, stages
from prunekit.surgery import Pruned, Removal
from prunekit.surgery.narrow import fronted
from prunekit.surgery.remove import check_fits, reduced_graph, without_gone_groups
from prunekit.surgery.tensors import copied, read
from prunekit.types import KeepMask


@dataclass(frozen=True, eq=False)
class _Target:
    """A layer that reads units of which some are gone.

    Attributes:
        layer: in the pruned graph.
        dense: the same in the dense graph.
        place: of its weight.
        bias: of its bias, or, without one, of the means that a batch norm behind it takes away; where it may
            be changed.
        sign: 1 where ``bias`` is added to the outputs, -1 where it is taken away.
    """

    layer: Layer
    dense: Layer
    place: Place
    bias: Place | None
    sign: int


def reconstruct(
    model: nn.Module,
    removal: Removal | Pruned | nn.Module,
    plan: PruningPlan,
    groups: Groups,
    calibration: Iterable[ModelInputs],
    *,
    sequential: bool = True,
    damping: float = DAMPING,
) -> Reconstruction:
    """Update what reads the removed units so that its outputs are closest to the dense model's; no training.

    For every linear layer and convolution that lost inputs, ``min |Y - X V.T - b|^2 + d |V - W|^2``
    over ``V`` and ``b``: ``Y`` the dense layer's outputs, ``X`` what the layer reads of the units that are
    left, ``W`` its weights before the update. Nothing but weights and biases of these layers changes; a layer
    without a bias gets none, but where a batch norm alone reads it, ``b`` is taken from the norm's running
    mean, which is the same. No labels are needed.

    All batches go through both models side by side, stage by stage, so that each operator runs once per batch
    whatever the depth. Held at once: what later stages read of all batches, in both models, and in float64
    ``[in, in + out]`` for each layer of one stage; parallel, of all layers, but the activations of one batch
    only. For a convolution ``in`` counts the kernel's positions, of one group of channels.

    Args:
        model: the dense model that ``groups`` was found in; left as it is.
        removal: what ``remove`` or ``prune`` gave for ``plan``, or its model; left as it is. Its weights may
            have been trained since.
        plan: that was carried out.
        groups: of the dense model.
        calibration: batches on the model's device, shaped like the example of the trace; never test data.
        sequential: each layer reads what the layers before it give once they are pruned and updated; else
            what the dense model gives.
        damping: ``d`` as a fraction of the mean of the diagonal of ``X.T X``; more where there are less than
            ten rows for each input, in proportion; raised where that is singular, and said.

    Raises:
        CalibrationError: no batches, or shaped unlike the example; NaN or infinity in what a layer reads, or
            new weights that the model's dtype does not hold.
        PlanError: plan, model and groups do not belong together.
        SelectionError: a dampening below 0.
        ShapeError: ``removal`` is not the model that the plan describes.

    Source: least squares on a layer's own outputs: He et al., 2017, eq. 5, https://arxiv.org/abs/1707.06168;
    with the outputs of the dense model as the aim in sequence: Luo et al., 2017 (ThiNet), section 3.2.2,
    https://arxiv.org/abs/1707.06342. Deviation: dampened towards the weights as they are, so that no update
    makes a layer worse.
    """
    check_damping(damping)
    check_fits(model, plan, groups)
    leaves = leaves_of_batches(groups.graph, calibration)
    small, moved = (removal, {}) if isinstance(removal, nn.Module) else (removal.model, removal.moved)
    keep = without_gone_groups(plan.keep_mask(), groups)
    with torch.inference_mode(False), untouched(model, ()), torch.no_grad():
        result = copied(small)
        work = _Work(model, result, {old: new for new, old in moved.items()}, groups, keep)
        layers, peak = work.run(leaves, damping) if sequential else work.run_parallel(leaves, damping)
    return Reconstruction(result, tuple(layers), tuple(work.left_alone), peak_bytes=peak)


class _Work:
    """Two graphs of one model, the dense one and the pruned one, and the layers to update."""

    def __init__(
        self, model: nn.Module, result: nn.Module, names: Mapping[str, str], groups: Groups, keep: KeepMask
    ) -> None:
        self._dense = model_tensors(model, groups.graph)
        self._groups, self._keep = groups, keep
        self._tied = groups.tied(keep)
        self._graph: PrunedGraph = reduced_graph(model, keep, groups)
        self._names = names
        self._tensors = _tensors(self._graph, result, names)
        nodes = list(self._graph.graph.nodes)
        static = static_nodes(nodes, lambda node: node.op == "get_attr")
        self._readers = Readers(static, self._name_of)
        self.left_alone: list[LeftAlone] = []
        self.targets: list[_Target] = []
        dense = self._dense_layers()
        for node in nodes:
            layer, original = layer_of(node, static), dense.get(node.name)
            if layer is not None and original is not None and self._lost_inputs(original):
                self._take(layer, original)
        self._report_others()

    def _name_of(self, node: Node) -> str | None:
        if node.op != "get_attr":
            return None
        name = str(node.target)
        return self._groups.graph.tied.get(name, name)

    def _dense_layers(self) -> dict[str, Layer]:
        graph = self._groups.graph
        static = static_nodes(graph.nodes, lambda node: node.name in graph.tensors)
        layers = [layer_of(node, static) for node in graph.nodes]
        return {layer.node.name: layer for layer in layers if layer is not None}

    def _lost_inputs(self, original: Layer) -> bool:
        dim = self._groups.labels_of(original.weight)[0][original.form.contracted]
        return not isinstance(dim, Fixed) and not self._groups.kept(dim, self._tied).all()

    def _take(self, layer: Layer, dense: Layer) -> None:
        place = place_of(layer.weight, self._name_of)
        if isinstance(place, str):
            self.left_alone.append(LeftAlone(behind(layer.weight, self._name_of), place))
            return
        tensor = self._tensors.get(place.name)
        if reason := unfit(tensor):
            self.left_alone.append(LeftAlone(place.name, reason))
            return
        assert tensor is not None
        reason = self._readers.objection(place, layer.node, tensor.shape)
        outputs = layer.form.to_matrix(place.apply(tensor)).flatten(0, 1).shape[0]
        if not reason and layer.bias is not None and self._added(layer.bias, outputs) is None:
            reason = "what is added to its outputs is no vector of numbers"
        if reason:
            self.left_alone.append(LeftAlone(place.name, reason))
            return
        bias, sign = self._bias(layer, outputs), 1
        if layer.bias is None:
            bias, sign = self._mean_behind(layer, outputs), -1
        self.targets.append(_Target(layer, dense, place, bias, sign))

    def _bias(self, layer: Layer, outputs: int) -> Place | None:
        """Where the bias lies, if it may be changed."""
        found = None if layer.bias is None else self._added(layer.bias, outputs)
        if found is None:
            return None
        (place, values), tensor = found, self._tensors[found[0].name]
        reason = unfit(tensor) or self._readers.objection(place, layer.node, tensor.shape)
        if not reason and values.numel() != outputs:
            reason = "it is one number for all outputs"
        if reason:
            self.left_alone.append(LeftAlone(place.name, reason))
        return None if reason else place

    def _mean_behind(self, layer: Layer, outputs: int) -> Place | None:
        """Where the mean lies that a batch norm, which alone reads the outputs, takes away from them."""
        norm = next(iter(layer.node.users), None)
        if norm is None or len(layer.node.users) > 1 or operator_name(norm) != "aten.batch_norm":
            return None
        given = bind(norm)
        mean = given.get("running_mean")
        if given.get("input") is not layer.node or not isinstance(mean, Node):
            return None
        found = self._added(mean, outputs)
        if found is None or found[1].numel() != outputs:
            return None
        tensor = self._tensors[found[0].name]
        return None if self._readers.objection(found[0], norm, tensor.shape) else found[0]

    def _added(self, bias: Node, outputs: int) -> tuple[Place, Tensor] | None:
        """The place and the values of what is added: one number for each output, or one for all."""
        place = place_of(bias, self._name_of)
        tensor = None if isinstance(place, str) else self._tensors.get(place.name)
        if tensor is None or isinstance(place, str) or not tensor.is_floating_point():
            return None
        values = place.apply(tensor)
        return (place, values) if values.ndim < 2 and values.numel() in (1, outputs) else None

    def _report_others(self) -> None:
        """Every tensor that reads removed units and is not among the targets."""
        known = {target.place.name for target in self.targets} | {item.tensor for item in self.left_alone}
        losing = {name for name, mask in self._keep.items() if not mask.all()}
        for group in self._groups.prunable:
            if group.name in losing and group.is_depth:
                reason = "layers that go whole leave no weights behind that read them"
                self.left_alone.append(LeftAlone(group.name, reason))
            for part in group.slices if group.name in losing else ():
                if part.role == "consumer" and part.tensor not in known and part.tensor in self._tensors:
                    known.add(part.tensor)
                    self.left_alone.append(LeftAlone(part.tensor, self._readers.unknown(part.tensor)))

    # --- Running -----------------------------------------------------------------------------------------

    def run(self, leaves: list[list[Any]], damping: float) -> tuple[list[LayerChange], int]:
        """Stage by stage through both models."""
        dense_nodes = {target.dense.node for target in self.targets}
        stage = stages(self._groups.graph.nodes, dense_nodes)
        earlier = {node.name: stage[node.name] - 1 for node in dense_nodes}
        dense = self._dense_stream(stage | earlier, leaves)
        small = Stream(self._graph, lambda node: self._tensor(node), stage, leaves)
        layers: list[LayerChange] = []
        peak = 0
        for now in range(max(stage.values(), default=0)):
            due = [target for target in self.targets if stage[target.dense.node.name] == now + 1]
            sums = [self._sums(target) for target in due]
            wanted: dict[Node, Tensor] = {}
            watchers = {node: partial(_hold, wanted, node) for node in (item.dense.node for item in due)}
            for batch in range(len(leaves)):
                dense.advance(batch, now, watchers)
                given = small.advance(batch, now, {})
                for target, (gram, residual) in zip(due, sums, strict=True):
                    output = self._shrunk(wanted, target.dense.node)
                    _add(target.layer, given[target.layer.source], output, gram, residual)
            held = dense.held_bytes + small.held_bytes
            peak = max(peak, held + sum(gram.nbytes + residual.nbytes for gram, residual in sums))
            layers += [self._update(*item, damping) for item in zip(due, sums, strict=True)]
        return layers, peak

    def run_parallel(self, leaves: list[list[Any]], damping: float) -> tuple[list[LayerChange], int]:
        """Every layer from what the dense model gives."""
        sums = [self._sums(target) for target in self.targets]
        pairs = list(zip(self.targets, sums, strict=True))
        watchers = {target.dense.node: partial(self._look, target, *both) for target, both in pairs}
        for one in leaves if self.targets else ():
            self._dense_stream({}, [one]).advance(0, 0, watchers)
        peak = sum(gram.nbytes + residual.nbytes for gram, residual in sums)
        return [self._update(*item, damping) for item in pairs], peak

    def _look(self, target: _Target, gram: Gram, residual: Residual, values: Mapping[Node, Tensor]) -> None:
        rows, output = (self._shrunk(values, node) for node in (target.dense.source, target.dense.node))
        _add(target.layer, rows, output, gram, residual)

    def _dense_stream(self, stage: Mapping[str, int], leaves: list[list[Any]]) -> Stream:
        graph = self._groups.graph

        def tensor_of(node: Node) -> Tensor | None:
            name = graph.tensors.get(node.name)
            if name is None:
                return None
            own = self._dense[node.name].detach()
            return fronted(self._groups, graph.tied.get(name, name), own, self._keep)

        return Stream(graph.program.graph_module, tensor_of, stage, leaves)

    def _tensor(self, node: Node) -> Tensor | None:
        return self._tensors.get(str(node.target)) if node.op == "get_attr" else None

    def _shrunk(self, values: Mapping[Node, Tensor], node: Node) -> Tensor:
        """A dense activation without the removed units."""
        value = values[node]
        for axis, dim in enumerate(self._groups.labels_of(node)[0]):
            if not isinstance(dim, Fixed):
                kept = self._groups.kept(dim, self._tied)
                if not kept.all():
                    index = torch.from_numpy(np.flatnonzero(kept)).to(value.device)
                    value = value.index_select(axis, index)
        return value

    def _matrix(self, target: _Target) -> tuple[Tensor, Tensor | None]:
        """The weight as ``[groups, out, in]`` and the bias as ``[groups, out]``, float64."""
        weight = target.place.apply(self._tensors[target.place.name])
        matrix = target.layer.form.to_matrix(weight).to(torch.float64, copy=True)
        groups, outputs, _ = matrix.shape
        added = None if target.layer.bias is None else self._added(target.layer.bias, groups * outputs)
        if added is None:
            return matrix, None
        return matrix, added[1].double().expand(groups * outputs).reshape(groups, outputs)

    def _sums(self, target: _Target) -> tuple[Gram, Residual]:
        return Gram(self._new_name(target.place), torch.float64), Residual(*self._matrix(target))

    def _new_name(self, place: Place) -> str:
        return self._names.get(place.name, place.name)

    def _update(self, target: _Target, sums: tuple[Gram, Residual], damping: float) -> LayerChange:
        gram, residual = sums
        moments, means = gram.finish()
        check_finite(residual.squares, gram.where, "outputs")
        matrix, _ = self._matrix(target)
        asked = for_rows(damping, matrix.shape[2], gram.count)
        count, after, used = max(1, gram.count), 0.0, asked
        shifts = residual.sums / count
        for group in range(len(matrix)):
            moment, cross, squares = moments[group], residual.cross[group], residual.squares[group]
            if target.bias is not None:
                moment = centred(moment, means[group], count)
                cross = cross - count * torch.outer(means[group], shifts[group])
                cross[moment.diagonal() == 0] = 0.0
                squares = (squares - count * shifts[group].square().sum()).clamp_min(0)
            change, left, raised = correct(moment, cross, squares, asked)
            matrix[group] += change
            shifts[group] -= change @ means[group]
            after, used = after + left, max(used, raised)
        tensor = self._tensors[target.place.name]
        shape = target.place.apply(tensor).shape
        new = target.layer.form.from_matrix(matrix, shape).to(tensor.dtype)
        check_new(new, gram.where)
        target.place.write(tensor, new)
        if target.bias is not None:
            tensor = self._tensors[target.bias.name]
            old = target.bias.apply(tensor).double()
            moved = (old + target.sign * shifts.flatten().view_as(old)).to(tensor.dtype)
            check_new(moved, self._new_name(target.bias))
            target.bias.write(tensor, moved)
        before, wanted = float(residual.squares.sum()), residual.wanted
        return LayerChange(
            name=gram.where,
            operator=operator_name(target.layer.node),
            before=before / wanted if wanted else 0.0,
            after=min(before, after) / wanted if wanted else 0.0,
            damping=used,
            dampened_more=used > asked,
            bias=target.bias is not None,
            rows=gram.count,
            inputs=matrix.shape[2],
        )


def _hold(held: dict[Node, Tensor], node: Node, values: Mapping[Node, Tensor]) -> None:
    held[node] = values[node]


def _add(layer: Layer, value: Tensor, output: Tensor, gram: Gram, residual: Residual) -> None:
    for rows, outputs in layer.form.pieces(value, output):
        assert outputs is not None
        residual.add(gram.add(rows), outputs)


def _tensors(graph: PrunedGraph, result: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The result's own tensors by the names in the graph, so that what is written to one is seen by both.

    Raises:
        ShapeError: the result lacks one, or it has another shape.
    """
    found: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        name = str(node.target)
        known = attribute(graph, name) if node.op == "get_attr" and name != "training" else None
        if not isinstance(known, Tensor):
            continue
        own = read(result, names.get(name, name))
        if own is None and not isinstance(known, nn.Parameter):
            own = known
        if own is None or own.shape != known.shape:
            given = "none" if own is None else f"one of the shape {list(own.shape)}"
            raise ShapeError(
                f"The plan leaves a tensor of the shape {list(known.shape)}, the model given has {given}",
                where=names.get(name, name),
                remedy="Give what remove() gave for this plan; after whole layers went, the Removal itself, "
                "which knows the tensors' new names",
            )
        found[name] = own
    return found
