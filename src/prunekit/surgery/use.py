"""Whether a pruned model can take the place of the dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.graph import Graph, Groups
from prunekit.surgery.carried import graph_at
from prunekit.surgery.compare import fresh_inputs, max_relative_error, outputs
from prunekit.surgery.laws import LawResult
from prunekit.surgery.tensors import copied
from prunekit.surgery.training import trains
from prunekit.types import KeepMask
from prunekit.workload import evaluating


def check_use(model: nn.Module, small: nn.Module, groups: Groups, keep: KeepMask) -> LawResult:
    """A pruned model serves where the dense one did.

    1. Its outputs are the same objects with tensors of the same types and shapes; released ones aside.
    2. It gets through a step of training, if the dense model does.
    3. A copy that is given its ``state_dict`` computes what it computes.

    A dense model that does not run on the example inputs as it is promises nothing.

    Args:
        model: the dense model.
        small: the pruned one.
        groups: of the dense model.
        keep: of the groups that were pruned, by name ``[units]`` bool.
    """
    graph, narrower, names = groups.graph, graph_at(groups, keep), tuple(keep)
    sizes = (graph.batch_size,)
    try:
        before = _looks(model, graph)
    except Exception:  # whatever it raises: it was traced in another dtype, say
        note = "the dense model does not run on the example inputs"
        return LawResult("use", (), 0.0, 0.0, sizes, passed=True, note=note)
    try:
        note = _difference(before, _looks(small, narrower))
    except Exception as failure:  # whatever the user's forward raises at the new widths
        note = f"it does not run: {type(failure).__name__}: {failure}"
    if not note and trains(model, graph) and not trains(small, narrower):
        note = "it does not get through a step of training"
    error, problem = _lost_by_saving(small, narrower)
    if error and _lost_by_saving(model, graph)[0]:
        error, problem = 0.0, ""  # The dense model is not saved by its state either.
    note = note or problem
    return LawResult("use", names, error, 0.0, sizes, not note and error == 0.0, note)


def _difference(before: dict[str, str], after: dict[str, str]) -> str:
    different = [path for path in before | after if before.get(path) != after.get(path)]
    if not different:
        return ""
    path = different[0]
    return f"the output{path} is {after.get(path, 'absent')} and was {before.get(path, 'absent')}"


def _looks(model: nn.Module, graph: Graph) -> dict[str, str]:
    """By path in the output: its type, and a tensor's shape. The kind of the whole has the path ""."""
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        args, kwargs = fresh_inputs(graph)
        found = model(*args, **kwargs)
    looks = {"": type(found).__name__}
    for path, leaf in pytree.tree_flatten_with_path(found)[0]:
        if pytree.keystr(path) not in graph.released_paths:
            tensor = f"a {leaf.dtype} of shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else ""
            looks[pytree.keystr(path)] = tensor or type(leaf).__name__
    return looks


def _lost_by_saving(model: nn.Module, graph: Graph) -> tuple[float, str]:
    """How far a copy is from the model, with zeros in place of its state, after it loaded the model's."""
    try:
        twin = copied(model)
        with torch.no_grad():
            for tensor in twin.state_dict().values():
                if isinstance(tensor, Tensor):
                    tensor.zero_()
        twin.load_state_dict(model.state_dict())
        args, kwargs = graph.args, graph.kwargs
        return max_relative_error(outputs(model, args, kwargs), outputs(twin, args, kwargs)), ""
    except Exception as failure:  # whatever the user's forward, or hooks on states, raise
        return float("inf"), f"it does not load its state again: {type(failure).__name__}: {failure}"
