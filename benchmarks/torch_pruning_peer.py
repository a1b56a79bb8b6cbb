"""The same rows with Torch-Pruning 1.6.1: half of every group by magnitude, its outputs left as they are.

What its documentation and examples ask of a user is done here for every model alike, without a line for one
model: layers that write the outputs are ignored, the numbers of heads of attention projections are handed in,
and the attributes that its examples repair afterwards (head sizes) are repaired where the model does not run
without. A row counts as pruned correctly if what is left runs, gives outputs of the same shapes, has lost
more than 5 % of its parameters, trains a step, reloads, and equals the masked model where that can
be checked.
"""

from __future__ import annotations

import copy
import resource
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from benchmarks.coverage_row import SPARSITY, Inputs, Record, after_pruning, run, same_outputs
from benchmarks.coverage_tables import MEANINGFUL
from tests.zoo.architectures.row import Row
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TOLERANCE = 1e-6
QUERIES = ("q_proj", "query", "q_lin", "q", "query_proj", "qkv", "query_key_value", "qkv_proj", "c_attn")
KEYS_AND_VALUES = ("k_proj", "key", "k_lin", "k", "key_proj", "v_proj", "value", "v_lin", "v", "value_proj")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", *HEADS)
HEAD_SIZES = ("head_dim", "attention_head_size", "attention_head_dim", "head_size", "key_value_proj_dim")
ALL_HEADS_SIZES = ("all_head_size", "inner_dim", "embed_dim")
Removed = list[tuple[str, bool, list[int]]]


def cover_with_peer(row: Row) -> Record:
    """One row; stages as in :func:`benchmarks.coverage_row.cover`."""
    begin = time.perf_counter()
    model, inputs = row.model(), row.example()
    before = sum(parameter.numel() for parameter in model.parameters())
    record: Record = {"name": row.name, "family": row.family, "params": before}
    small = copy.deepcopy(model)
    try:
        heads = heads_of(small)
        removed = prune(small, inputs, heads)
    except Exception as error:  # whatever the peer raises is its result
        record |= {"correct": False, "stage": "prune", "error": f"{type(error).__name__}: {error}"[:600]}
        record["traceback"] = traceback.format_exc().splitlines()[-6:]
    else:
        if _says(model, small, inputs):
            repair(small, heads)
        record["removed"] = round(1 - sum(parameter.numel() for parameter in small.parameters()) / before, 4)
        record |= after_pruning(model, small, inputs) | _masked(model, small, inputs, removed)
        record |= _judged(record)
    record["seconds"] = round(time.perf_counter() - begin, 2)
    record["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def prune(model: nn.Module, inputs: Inputs, heads: Mapping[nn.Module, int]) -> Removed:
    """Prune in place; the layers whose input or output channels went, by name."""
    import torch_pruning

    model.requires_grad_(requires_grad=True)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,  # pyright: ignore[reportArgumentType]: a dict is taken too
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=SPARSITY,
        ignored_layers=output_layers(model, inputs),
        num_heads=dict(heads),
        in_channel_groups={},
        out_channel_groups={},
        output_transform=_floats,
    )
    names = {module: name for name, module in model.named_modules()}
    removed: Removed = []
    for group in pruner.step(interactive=True) or ():
        for dependency, indices in group:
            module = dependency.target.module
            if module in names:
                is_output = pruner.DG.is_out_channel_pruning_fn(dependency.handler)
                removed.append((names[module], bool(is_output), [int(index) for index in indices]))
        group.prune()
    return removed


def output_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers with weights that write to an output with no other such layer in between.

    Its documentation asks for the last layers by hand; this finds them by walking back from the outputs'
    gradient functions to the first ones that belong to a layer.
    """
    writers: dict[Any, nn.Module] = {}

    def note(module: nn.Module, _: object, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            writers[output.grad_fn] = module

    layers = [
        module for module in model.modules() if not list(module.children()) and list(module.parameters())
    ]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    pending = [tensor.grad_fn for tensor in _floats(model.eval()(**inputs))]
    for hook in hooks:
        hook.remove()
    found: dict[nn.Module, None] = {}
    seen = set()
    while pending:
        function = pending.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function in writers:
            found[writers[function]] = None
        else:
            pending += [source for source, _ in function.next_functions]
    return list(found)


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Heads of the projections that are named as everybody names them; queries first."""
    heads: dict[nn.Module, int] = {}
    for owner in model.modules():
        for names, counts in ((QUERIES, HEADS), (KEYS_AND_VALUES, KEY_VALUE_HEADS)):
            for name in names:
                layer, count = getattr(owner, name, None), _first(owner, counts)
                if isinstance(layer, nn.Linear | nn.Conv1d) and count and len(layer.weight) % count == 0:
                    heads[layer] = count
    return heads


def repair(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """The sizes of heads follow the projections, as in the examples for ViT and Llama."""
    for owner in model.modules():
        query = next((getattr(owner, name) for name in QUERIES if getattr(owner, name, None) in heads), None)
        if query is None:
            continue
        width = len(query.weight)
        for names, size in ((HEAD_SIZES, width // heads[query]), (ALL_HEADS_SIZES, width)):
            for name in names:
                if isinstance(getattr(owner, name, None), int):
                    setattr(owner, name, size)


def _first(owner: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that a module or its configuration has."""
    for holder in (owner, getattr(owner, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None


def _floats(outputs: Any) -> list[Tensor]:
    """The outputs that depend on a parameter."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _says(model: nn.Module, small: nn.Module, inputs: Inputs) -> str:
    """What is wrong with the outputs, or nothing."""
    try:
        return same_outputs(model, small, inputs)
    except Exception as error:  # whatever the narrower model raises
        return f"{type(error).__name__}: {error}"


def _masked(model: nn.Module, small: nn.Module, inputs: Inputs, removed: Removed) -> Record:
    """Whether removed equals masked, where no norm but batch norm takes part; else nothing."""
    norms = [type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__]
    if any("BatchNorm" not in name for name in norms) or not removed:
        return {}
    masked = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, is_output, indices in removed:
            layer = masked.get_submodule(name)
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, Tensor):
                continue
            dim = 0 if is_output or weight.ndim == 1 or getattr(layer, "groups", 1) > 1 else 1
            weight.index_fill_(dim, torch.tensor(indices), 0.0)
            bias = getattr(layer, "bias", None)
            if isinstance(bias, Tensor) and dim == 0:
                bias.index_fill_(0, torch.tensor(indices), 0.0)
    try:
        wide = {name: value.double() if _is_float(value) else value for name, value in inputs.items()}
        pairs = zip(_all(run(masked, wide)), _all(run(copy.deepcopy(small).double(), wide)), strict=True)
        error = max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300) for a, b in pairs)
    except Exception:  # it does not run in double precision, or at the new widths: said elsewhere
        return {}
    return {"masked_error": error, "equals_masked": error <= TOLERANCE}


def _judged(record: Record) -> Record:
    stages = {
        "run": record["same_outputs"],
        "remove": record["removed"] > MEANINGFUL,
        "train": record["trained"],
        "reload": record["reloaded"],
        "equal the masked model": record.get("equals_masked", True),
    }
    failed = next((stage for stage, passed in stages.items() if not passed), None)
    errors = [
        record[name] for name in ("same_outputs_error", "trained_error", "reloaded_error") if name in record
    ]
    errors.append(
        f"removed {record['removed']:.1%} of the parameters, masked error {record.get('masked_error')}"
    )
    return {"correct": failed is None} | ({"stage": failed, "error": errors[0]} if failed else {})


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _all(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if _is_float(leaf) and leaf.numel()]
