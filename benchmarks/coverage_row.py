"""One architecture through every stage, in this process: ``python -m benchmarks.coverage_row NAME``.

Prints one line of JSON. ``benchmarks.coverage`` starts a process for each row, so that a crash, an endless
loop or a leak of memory stays with its row.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.zoo.architectures.row import Row
from tests.zoo.architectures.table import BY_NAME
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import prunekit as pk
from prunekit.deploy import Exported, OnnxExport, check_parity, export_onnx
from prunekit.errors import ExportError, ProofError, PrunekitError, SelectionError, TraceError
from prunekit.graph import Groups
from prunekit.types import Frozen

SPARSITY = 0.5
Inputs = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """The inputs of one call."""

    kwargs: Inputs
    args: tuple[Any, ...] = ()


def cover(row: Row, *, export: bool = True) -> Record:
    """Every stage of one row; a stage that was not reached is absent."""
    begin = time.perf_counter()
    record: Record = {"name": row.name, "family": row.family, "architecture": row.architecture}
    model, inputs = row.model(), row.example()
    record["params"] = sum(parameter.numel() for parameter in model.parameters())
    try:
        pruned = pk.prune(model, kwargs=inputs, sparsity=SPARSITY)
    except Exception as error:  # an internal error is what this benchmark looks for
        record |= _why_not(model, inputs, error)
    else:
        record["seconds_to_prune"] = round(time.perf_counter() - begin, 2)
        record |= {"traced": True, "pruned": True, "verified": pruned.proof.passed}
        record |= {"form": pruned.form, "form_reason": pruned.form_reason} | _reach(model, pruned.groups)
        record["removed"] = round(1 - pruned.plan.after.params / pruned.plan.before.params, 4)
        record["macs_removed"] = round(1 - pruned.plan.after.macs / max(1, pruned.plan.before.macs), 4)
        record |= after_pruning(model, pruned.model, inputs)
        if export:
            record |= _exported(model, pruned, inputs)
    record["seconds"] = round(time.perf_counter() - begin, 2)
    record["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def after_pruning(model: nn.Module, small: nn.Module, inputs: Inputs) -> Record:
    """The checks that ask nothing of the library that pruned: shapes, one step of training, saving."""
    return {
        **_stage("same_outputs", lambda: same_outputs(model, small, inputs)),
        **_trained(model, small, inputs),
        **_stage("reloaded", lambda: reloads(small, inputs)),
    }


def _trained(model: nn.Module, small: nn.Module, inputs: Inputs) -> Record:
    """Whether it trains; where it does not, whether the dense model does."""
    record = _stage("trained", lambda: trains(small, inputs))
    if not record["trained"]:
        record["parent_trained"] = _stage("trained", lambda: trains(model, inputs))["trained"]
    return record


def _stage(name: str, check: Callable[[], str]) -> Record:
    """A check that gives what is wrong, or nothing."""
    try:
        wrong = check()
    except Exception as error:  # whatever the model's code raises
        wrong = _text(error)
    return {name: not wrong} | ({f"{name}_error": wrong} if wrong else {})


def same_outputs(model: nn.Module, small: nn.Module, inputs: Inputs) -> str:
    """Structure, shapes and types of the outputs are as before, at the example's batch size."""
    before, after = pytree.tree_flatten(run(model, inputs)), pytree.tree_flatten(run(small, inputs))
    if str(before[1]) != str(after[1]):
        return f"the outputs are another structure: {after[1]}, not {before[1]}"
    looks = [[_look(leaf) for leaf in leaves] for leaves, _ in (before, after)]
    return "" if looks[0] == looks[1] else f"the outputs are {looks[1]}, not {looks[0]}"


def trains(small: nn.Module, inputs: Inputs) -> str:
    """One step of SGD in training mode, with finite outputs, gradients and parameters."""
    model = copy.deepcopy(small).train()
    torch.manual_seed(0)
    leaves = pytree.tree_leaves(model(**_copies(inputs)))
    floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    loss = sum((leaf.float().square().mean() for leaf in floats if leaf.requires_grad), torch.zeros(()))
    if not loss.requires_grad:
        return "no output depends on a parameter"
    loss.backward()
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not bool(loss.isfinite()) or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return f"the loss is {loss.item()} and a gradient may not be finite"
    torch.optim.SGD(parameters, lr=1e-3).step()
    return (
        "" if all(bool(parameter.isfinite().all()) for parameter in parameters) else "a weight is not finite"
    )


def reloads(small: nn.Module, inputs: Inputs) -> str:
    """Its state goes through a safetensors file into a perturbed twin, which then gives equal outputs."""
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: value.clone().contiguous() for name, value in small.state_dict().items()}, path)
        twin.load_state_dict(load_file(path), strict=True)
    pairs = zip(_tensors(run(small, inputs)), _tensors(run(twin, inputs)), strict=True)
    return (
        "" if all(torch.equal(left, right) for left, right in pairs) else "the outputs differ after reloading"
    )


def run(model: nn.Module, inputs: Inputs) -> Any:
    """The outputs in evaluation mode, from copies of the inputs."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return model(**_copies(inputs))
    finally:
        for module, training in modes.items():
            module.training = training


def _why_not(model: nn.Module, inputs: Inputs, error: Exception) -> Record:
    """How far the row came, and the reason."""
    record: Record = {
        "pruned": False,
        "refused": isinstance(error, PrunekitError),
        "error_type": type(error).__name__,
        "error": _text(error),
        "traceback": _portable(traceback.format_exc()).splitlines()[-8:],
    }
    if isinstance(error, TraceError):
        return record | {"traced": False}
    record |= {
        "stage": "groups"
        if isinstance(error, SelectionError)
        else "proof"
        if isinstance(error, ProofError)
        else "crash"
    }
    try:
        graph = pk.trace(model, kwargs=inputs)
        record["traced"] = True
        record |= _reach(model, pk.find_groups(graph))
    except Exception as second:  # the same error, one stage earlier
        record |= {"stage": "find groups" if record.get("traced") else "trace", "error": _text(second)}
    return record


def _reach(model: nn.Module, groups: Groups) -> Record:
    """How many groups there are, and the share of the parameters in tensors that they touch."""
    touched = {name for group in groups for name in group.tensors}
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    reached = sum(parameter.numel() for name, parameter in parameters.items() if name in touched)
    kinds: dict[str, int] = {}
    for group in groups:
        kinds[group.granularity.value] = kinds.get(group.granularity.value, 0) + 1
    return {
        "groups": len(groups),
        "kinds": kinds,
        "reachable": round(reached / total, 4),
        "frozen": [_frozen(item, parameters, touched) for item in groups.frozen],
        "batch_is_open": groups.graph.batch_is_open,
    }


def _frozen(item: Frozen, parameters: Mapping[str, nn.Parameter], touched: set[str]) -> Record:
    names = {part.tensor for part in item.slices}
    unreached = sum(parameters[name].numel() for name in names if name in parameters and name not in touched)
    return {
        "operator": item.operator,
        "reason": re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", item.reason),
        "axis": item.name,
        "source": _portable(item.source),
        "unreached_params": unreached,
    }


def _exported(model: nn.Module, pruned: pk.Pruned, inputs: Inputs) -> Record:
    """Dense and pruned as ONNX files that give what PyTorch gives; the open batch is given up if need be."""
    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        for dynamic in (True, False) if pruned.groups.graph.batch_is_open else (False,):
            try:
                dense = _export(model, inputs, Path(folder) / "dense.onnx", dynamic=dynamic)
            except ExportError as error:
                record = {"exported": False, "export_error": f"parent: {_text(error)}"}
                continue
            try:
                small = _export(pruned.model, inputs, Path(folder) / "small.onnx", dynamic=dynamic)
            except ExportError as error:
                record = {"exported": False, "parent_exported": True, "export_error": _text(error)}
                continue
            parity = check_parity(Exported(model, dense), Exported(pruned.model, small), [Call(inputs)])
            wrong = [step for step in parity.steps if not step.passed]
            record = {
                "exported": not any(step.name.startswith("pruned") for step in wrong),
                "parent_exported": not any(step.name.startswith("dense") for step in wrong),
                "export_batch": "open" if dynamic else "fixed",
            }
            if wrong:
                record["export_error"] = "; ".join(f"{step.name}: {step.reason}" for step in wrong)[:400]
            else:
                break
    return record


def _export(model: nn.Module, inputs: Inputs, path: Path, *, dynamic: bool) -> OnnxExport:
    return export_onnx(model, (), inputs, path, dynamic_batch=dynamic)


def _look(leaf: object) -> object:
    return (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else type(leaf).__name__


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _copies(inputs: Inputs) -> Inputs:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)


def _text(error: BaseException) -> str:
    return _portable(f"{type(error).__name__}: {str(error).strip()}")[:600]


def _portable(text: str) -> str:
    """Places as they are on any machine: from the packages' directory, or the repository, on."""
    here = str(Path(__file__).resolve().parents[1])
    return re.sub(r"[^\s\"']*/site-packages/", "", text).replace(f"{here}/", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--peer", action="store_true", help="with Torch-Pruning instead of prunekit")
    parser.add_argument("--no-export", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if asked.peer:
        from benchmarks.torch_pruning_peer import cover_with_peer

        record = cover_with_peer(BY_NAME[asked.name])
    else:
        record = cover(BY_NAME[asked.name], export=not asked.no_export)
    print("\n" + json.dumps(record))


if __name__ == "__main__":
    main()
