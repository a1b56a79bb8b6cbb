"""Running two models on the same inputs and saying how far apart they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from prunekit.graph import Graph
from prunekit.graph.pruned_graph import PrunedGraph
from prunekit.surgery.tensors import copied
from prunekit.workload import evaluating

FORM_TOLERANCE = 1e-9
"""Relative, in float64: the user's class and the pruned graph run the same operators on the same weights."""

OWN_TOLERANCE = 2e-6
"""Relative, where a class runs in its own precision alone: the same operators leave the same rounding."""


def outputs(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], *, released: Collection[str] = ()
) -> list[Tensor]:
    """The tensors among the outputs, in evaluation mode, from copies of the inputs and the same random state.

    Args:
        model: any module.
        args: positional inputs.
        kwargs: keyword inputs.
        released: paths of leaves of the output to leave out.

    Returns:
        Without tensors that hold nothing, such as the cache of a layer that was left out.
    """
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        leaves, _ = pytree.tree_flatten_with_path(model(*args, **kwargs))
    return [
        leaf
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and leaf.numel() and not (released and pytree.keystr(path) in released)
    ]


def fresh_inputs(graph: Graph) -> tuple[tuple, dict[str, Any]]:
    """Copies of the example inputs, which a model may write to."""
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (graph.args, graph.kwargs)
    )


def max_relative_error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference over the reference's largest magnitude, over all outputs; inf where shapes differ.

    ``max_t max_i |a_ti - b_ti| / max(max_i |a_ti|, tiny)``; 0 where both are equal, NaN counts as inf.
    Integer and boolean outputs have to be equal.
    """
    if [tensor.shape for tensor in reference] != [tensor.shape for tensor in other]:
        return float("inf")
    worst = 0.0
    for left, right in zip(reference, other, strict=True):
        if left.numel() == 0:
            continue
        if not left.is_floating_point() and not left.is_complex():
            worst = max(worst, 0.0 if torch.equal(left, right) else float("inf"))
            continue
        scale = max(float(left.abs().max()), torch.finfo(left.dtype).tiny)
        error = float((left - right).abs().max()) / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in double precision, in evaluation mode; plain tensor attributes included."""
    twin = copied(model).eval()
    twin._apply(_doubled)
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, _doubled(value))
    return twin


_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def double_throughout(graph_module: GraphModule) -> nn.Module:
    """A copy of a graph in double precision, dtypes written into its operators included."""
    twin = in_float64(graph_module)
    assert isinstance(twin, GraphModule)
    for node in twin.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            node.args = pytree.tree_map(_wider, node.args)
            node.kwargs = pytree.tree_map(_wider, node.kwargs)
    twin.recompile()
    return twin


def _wider(argument: Any) -> Any:
    return _WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


@contextmanager
def double_by_default() -> Iterator[None]:
    """New tensors are made in double precision where no dtype is given."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _doubled(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def input_batches(graph: Graph, *, double: bool = True) -> list[tuple[tuple, dict[str, Any]]]:
    """The example inputs (in double precision) and, where the batch is open, with one example more.

    Not where another tensor of as many examples stays closed: the two would no longer fit.
    """
    leaves, spec = pytree.tree_flatten((graph.args, graph.kwargs))
    if double:
        leaves = [_doubled(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    batches = [pytree.tree_unflatten(leaves, spec)]
    closed = {
        leaf.shape[0]
        for leaf, grows in zip(leaves, graph.open_inputs, strict=True)
        if isinstance(leaf, Tensor) and leaf.ndim and not grows
    }
    if graph.batch_is_open and graph.batch_size not in closed:
        longer = [
            torch.cat([leaf, leaf[:1]]) if grows else leaf
            for leaf, grows in zip(leaves, graph.open_inputs, strict=True)
        ]
        batches.append(pytree.tree_unflatten(longer, spec))
    return batches


@dataclass(frozen=True)
class Precision:
    """How a user's class and its graph are made comparable.

    Attributes:
        name: ``double`` (all of it), ``double as written`` (but for the dtypes written into the model's code)
            or ``own`` (the precision the model has, because it does not run in another).
        tolerance: relative. The same operators run on the same weights in the same order.
    """

    name: Literal["double", "double as written", "own"]
    tolerance: float

    def of(self, model: nn.Module) -> nn.Module:
        """A copy of a model in this precision."""
        if self.name == "own":
            return copied(model).eval()
        if self.name == "double" and isinstance(model, PrunedGraph):
            return double_throughout(model)
        return in_float64(model)

    def batches(self, graph: Graph) -> list[tuple[tuple, dict[str, Any]]]:
        """The example inputs in this precision."""
        return input_batches(graph, double=self.name != "own")

    def distance(self, model: nn.Module, other: nn.Module, graph: Graph) -> float:
        """Largest relative difference of the outputs over the batches; both already in this precision.

        Of the batches up to the first on which the two are further apart than the tolerance.
        """
        worst = 0.0
        for args, kwargs in self.batches(graph):
            pair = (outputs(each, args, kwargs) for each in (model, other))
            worst = max(worst, max_relative_error(*pair))
            if worst > self.tolerance:
                break
        return worst


def precision_of(model: nn.Module, dense: nn.Module, graph: Graph) -> tuple[Precision, float]:
    """The highest precision in which ``model`` computes what the graph it was traced into computes.

    Args:
        model: the user's model.
        dense: the graph as a module, with the model's tensors.
        graph: the traced graph.

    Returns:
        The precision, and how far the two are apart in it; more than its tolerance means that the graph
        is not the model: it was traced while something else held.
    """
    floating = [tensor for tensor in model.parameters() if tensor.is_floating_point()]
    epsilon = max((torch.finfo(tensor.dtype).eps for tensor in floating), default=1.2e-7)
    found = []
    for precision in (
        Precision("double", FORM_TOLERANCE),
        Precision("double as written", FORM_TOLERANCE),
        Precision("own", 16 * epsilon),
    ):
        try:
            error = precision.distance(precision.of(dense), precision.of(model), graph)
        except Exception:  # whatever the user's forward raises when a dtype it pins meets another
            error = float("inf")
        if error <= precision.tolerance and precision.name == "own":
            # The two run the same operators: as near as the dense ones are, the pruned ones have to be.
            precision = Precision("own", min(precision.tolerance, max(2 * error, OWN_TOLERANCE)))
        if error <= precision.tolerance:
            return precision, error
        found.append((error, precision))
    error, precision = min(found, key=lambda pair: pair[0])
    return precision, error
