"""From a model and its example inputs to a graph of ATen operators, with the batch size left open."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from prunekit.errors import TraceError, WorkloadError


@dataclass(frozen=True, eq=False)
class Graph:
    """The operators a model runs, and what its inputs and tensors are called.

    Attributes:
        program: what torch.export gave (ATen training IR; batch norm, linear and attention are whole).
        tensors: qualified name of the parameter, buffer or constant behind each placeholder of the graph.
        trainable: the names among them that are parameters.
        tied: name -> the first name of the same tensor, for parameters and buffers with several names.
        args: the positional example inputs, on the model's device.
        kwargs: the keyword example inputs.
        open_inputs: for each leaf of ``(args, kwargs)``, whether its first dimension is an open batch.
    """

    program: ExportedProgram
    tensors: Mapping[str, str]
    trainable: frozenset[str]
    tied: Mapping[str, str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    open_inputs: tuple[bool, ...]

    @property
    def batch_is_open(self) -> bool:
        """The graph accepts other batch sizes than the example's."""
        return any(self.open_inputs)

    @property
    def batch_size(self) -> int:
        """Examples in the example inputs: of the open inputs, or of the first tensor where none is open."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.ndim and (self.open_inputs[index] or not self.batch_is_open):
                return leaf.shape[0]
        return 1

    @property
    def nodes(self) -> list[torch.fx.Node]:
        """The nodes in the order in which they run."""
        return list(self.program.graph.nodes)

    def tensor(self, name: str) -> Tensor:
        """The parameter, buffer or constant of that name."""
        found = self.program.state_dict.get(name)
        if found is None:
            found = self.program.constants[name]
        assert isinstance(found, Tensor)
        return found


def trace(
    model: nn.Module, args: Tensor | Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Graph:
    """Trace ``model`` in evaluation mode; the model is left as it was found.

    The first dimension of every input tensor stays open where the model allows it. An example with a
    batch of one is repeated to two, because torch.export takes a dimension of one as a constant.

    Args:
        model: any ``nn.Module``, in any mode.
        args: positional example inputs; one tensor may be given without a tuple.
        kwargs: keyword example inputs.

    Raises:
        TraceError: torch.export cannot follow the model; says where in the user's code.
    """
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"a {type(model).__name__} was given", expected="a torch.nn.Module to prune")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise WorkloadError(
            f"kwargs is a {type(kwargs).__name__}", expected="a dict of example inputs by name"
        )
    args = () if args is None else args
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    kwargs = dict(kwargs or {})
    wide_args, wide_kwargs = _batch_of_two((args, kwargs))
    with _evaluating(model):
        for inputs, is_open in (
            ((wide_args, wide_kwargs), True),
            ((wide_args, wide_kwargs), False),
            ((args, kwargs), False),
        ):
            try:
                program = _export(model, *inputs, is_open=is_open)
                break
            except Exception as error:  # torch.export raises whatever the user's code raises
                failure = error
        else:
            raise _explain(model, failure)
    return Graph(
        program=program,
        tensors=_tensor_names(program),
        trainable=frozenset(program.graph_signature.parameters),
        tied=_tied(model),
        args=inputs[0],
        kwargs=inputs[1],
        open_inputs=_open_inputs(program),
    )


def _export(model: nn.Module, args: tuple, kwargs: dict, *, is_open: bool) -> ExportedProgram:
    def spec(value: Any) -> Any:
        return {0: ExportDim.AUTO} if isinstance(value, Tensor) and value.ndim > 0 else None

    shapes = (pytree.tree_map(spec, args), pytree.tree_map(spec, kwargs)) if is_open else None
    with torch.no_grad():
        if shapes is None:
            return export(model, args, kwargs, strict=False)
        named = _by_parameter_name(model, shapes[0], shapes[1])
        return export(model, args, kwargs, strict=False, dynamic_shapes=named)


def _by_parameter_name(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """torch.export wants one flat mapping as soon as there are keyword inputs."""
    if not kwargs:
        return args
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs)
    shapes: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            shapes.update(value)
        else:
            shapes[name] = value
    return shapes


def _batch_of_two(inputs: tuple[tuple, dict]) -> tuple[tuple, dict]:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not tensors or any(tensor.shape[0] != 1 for tensor in tensors):
        return inputs

    def twice(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0:
            return torch.cat([value, value])
        return value

    return pytree.tree_map(twice, inputs)


@contextmanager
def _evaluating(model: nn.Module):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _tensor_names(program: ExportedProgram) -> dict[str, str]:
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and spec.target is not None
    }


def _tied(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        canonical = first.setdefault(id(tensor), name)
        if canonical != name:
            tied[name] = canonical
    return tied


def _open_inputs(program: ExportedProgram) -> tuple[bool, ...]:
    """For each input, whether its first dimension is a free symbol.

    torch.export quietly fixes a symbol that the model pins down; then it is not free.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            value = values.get(spec.arg.name)
            size = value.shape[0] if isinstance(value, Tensor) and value.ndim else None
            found.append(isinstance(size, torch.SymInt) and size.node.expr in program.range_constraints)
    return tuple(found)


def _explain(model: nn.Module, error: Exception) -> TraceError:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and "/prunekit/" not in frame.filename
    ]
    where = (
        f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else type(model).__name__
    )
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return TraceError(
        f"torch.export cannot trace {type(model).__name__}: {type(error).__name__}: {first}",
        where=where,
        remedy=(
            "Check that the example inputs are what its forward takes and that it does not branch on tensor "
            "values; a submodule that traces can still be pruned alone, as in pk.prune(model.backbone, ...)"
        ),
    )
