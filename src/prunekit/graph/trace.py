"""From a model and its example inputs to a graph of ATen operators, with the batch size left open."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from prunekit.errors import SelectionError, WorkloadError
from prunekit.graph.export import Inputs, export

CACHES = ("*past_key_values*", "*cache_params*")
"""Outputs and inputs that a model only hands to its own next call: they may shrink with it."""


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
        outputs: the path of each leaf of the output, such as ``['logits']`` or ``[0]``.
        released: positions of the leaves of the output that may change their shape.
        carried: by the name of its placeholder, the position of each leaf of ``(args, kwargs)`` that a call
            was handed by the one before, and that may shrink with the model.
    """

    program: ExportedProgram
    tensors: Mapping[str, str]
    trainable: frozenset[str]
    tied: Mapping[str, str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    open_inputs: tuple[bool, ...]
    outputs: tuple[str, ...]
    released: frozenset[int]
    carried: Mapping[str, int]

    @property
    def released_paths(self) -> frozenset[str]:
        """The paths of the leaves of the output that may change their shape."""
        return frozenset(self.outputs[position] for position in self.released)

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
    model: nn.Module,
    args: Tensor | Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    release: Sequence[str] | str = (),
) -> Graph:
    """Trace ``model`` in evaluation mode; the model is left as it was found.

    The first dimension of every input tensor stays open where the model allows it. An example with a
    batch of one is repeated to two, because torch.export takes a dimension of one as a constant.

    Args:
        model: any ``nn.Module``, in any mode.
        args: positional example inputs; one tensor may be given without a tuple.
        kwargs: keyword example inputs.
        release: shell-style patterns of output paths (``Graph.outputs``) that may change their shape, so
            that what they consist of can be pruned: ``"*embedding*"``, or ``"*"`` for all. Caches that a
            model hands to its own next call are always released: outputs, and floating-point inputs, whose
            path matches :data:`CACHES` (an input's begins with the name of ``forward``'s parameter).

    Raises:
        TraceError: torch.export cannot follow the model; says where in the user's code.
        WorkloadError: the model or its inputs are of the wrong type, or there are no examples.
        SelectionError: a pattern of ``release`` matches no output.
    """
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"a {type(model).__name__} was given", expected="a torch.nn.Module to prune")
    program, (args, kwargs) = export(model, _inputs(args, kwargs))
    signature = program.graph_signature
    outputs = _output_paths(program)
    return Graph(
        program=program,
        tensors=_tensor_names(program),
        trainable=frozenset(signature.parameters),
        tied=_tied(model),
        args=args,
        kwargs=kwargs,
        open_inputs=_open_inputs(program),
        outputs=outputs,
        released=_released(outputs, release),
        carried=_carried(model, args, kwargs, program),
    )


def _inputs(args: Any, kwargs: Any) -> Inputs:
    """Example inputs as torch.export takes them, checked."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise WorkloadError(
            f"kwargs is a {type(kwargs).__name__}", expected="a dict of example inputs by name"
        )
    args = () if args is None else (args,) if isinstance(args, Tensor) else args
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise WorkloadError(
            f"args is a {type(args).__name__}", expected="a tensor or a tuple of positional example inputs"
        )
    inputs = tuple(args), dict(kwargs or {})
    for path, leaf in pytree.tree_flatten_with_path(inputs)[0]:
        if isinstance(leaf, Tensor) and leaf.numel() == 0 and leaf.ndim:
            raise WorkloadError(
                f"the example input {pytree.keystr(path[1:])} has the shape {list(leaf.shape)}",
                expected="at least one example",
                remedy="Give a batch of one or more examples",
            )
    return inputs


def _output_paths(program: ExportedProgram) -> tuple[str, ...]:
    spec = program.call_spec.out_spec
    assert spec is not None
    nested = pytree.tree_unflatten([torch.empty(1)] * spec.num_leaves, spec)
    return tuple(pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(nested)[0])


def _released(outputs: tuple[str, ...], release: object) -> frozenset[int]:
    patterns = (release,) if isinstance(release, str) else release
    if not isinstance(patterns, Collection):
        raise SelectionError(
            f"{release!r} was given", expected="a pattern, or a list of patterns", where="release"
        )
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(path, pattern) for path in outputs):
            raise SelectionError(
                f"the pattern {pattern!r} matches no output",
                expected="a shell-style pattern of one of "
                + ", ".join(path or "''" for path in outputs[:20]),
                where="release",
            )
    return frozenset(
        position
        for position, path in enumerate(outputs)
        if any(fnmatchcase(path, pattern) for pattern in (*patterns, *CACHES))
    )


def _carried(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], program: ExportedProgram
) -> dict[str, int]:
    """See :attr:`Graph.carried`; a type that does not say what its parts are called has none."""
    specs = program.graph_signature.input_specs
    placeholders = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    parameters = [*inspect.signature(model.forward).parameters, *[""] * len(args)]
    called = zip((*parameters[: len(args)], *kwargs), (*args, *kwargs.values()), strict=True)
    leaves: list[tuple[str, Any]] = []
    for name, value in called:
        try:
            named = pytree.tree_flatten_with_path(value)[0]
        except ValueError:
            named = [((), None) for _ in pytree.tree_leaves(value)]
        leaves += [(f"{name}{pytree.keystr(path)}", leaf) for path, leaf in named]
    return {
        placeholders[position]: position
        for position, (path, leaf) in enumerate(leaves)
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and any(fnmatchcase(path, pattern) for pattern in CACHES)
    }


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
