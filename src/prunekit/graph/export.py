"""torch.export and what it needs: an open batch, known output types, no wrappers around operators."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.export import export as torch_export
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunekit.errors import TraceError
from prunekit.quiet import overheard
from prunekit.workload import evaluating

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs."""


def export(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, Inputs]:
    """Trace ``model`` in evaluation mode, its batch open if it allows that.

    An example with a batch of one is repeated to two, because torch.export takes a dimension of one as a
    constant.

    Args:
        model: left as it was found.
        inputs: the example inputs.

    Returns:
        The operators, with wrappers such as ``autocast(enabled=False)`` dissolved, and the inputs they were
        traced with.

    Raises:
        TraceError: torch.export cannot follow the model; says where in the user's code.
    """
    _register_opaque(inputs)
    wide = _batch_of_two(inputs)
    attempts = [(wide, True, True), (wide, False, True), (inputs, False, True)]
    failure: Exception | None = None
    with _spelt_out(model), overheard():  # It logs, and prints the graph of a model it cannot trace.
        while attempts:
            given, is_open, has_gradients = attempts[0]
            args, kwargs = given
            try:
                program = _export(model, args, kwargs, is_open=is_open, has_gradients=has_gradients)
            except Exception as error:  # torch.export raises whatever the user's code raises
                if not ("pytree" in str(error) and _learn_types(model, inputs)):
                    failure = failure or error
                    attempts.pop(0)
                    if has_gradients and "requires grad" in str(error):
                        attempts.insert(0, (given, is_open, False))
                continue
            _dissolve(program.graph_module)
            return program, (args, kwargs)
    assert failure is not None
    raise _explain(model, inputs, failure)


def _export(
    model: nn.Module, args: tuple, kwargs: dict, *, is_open: bool, has_gradients: bool
) -> ExportedProgram:
    """Regions of the model without gradients are only told from others where gradients are on."""
    shapes = (_open_shapes(args), _open_shapes(kwargs)) if is_open else None
    with torch.set_grad_enabled(has_gradients), _without_idle_switches(model):
        if shapes is None:
            return torch_export(model, args, kwargs, strict=False)
        named = _by_parameter_name(model, shapes[0], shapes[1])
        return torch_export(model, args, kwargs, strict=False, dynamic_shapes=named)


def _open_shapes(value: Any) -> Any:
    """An open first dimension for every tensor, nested as torch.export wants it: other types as lists.

    Source: torch 2.13, ``torch/export/dynamic_shapes.py``, ``_tree_map_with_path``.
    """
    if isinstance(value, Tensor):
        return {0: ExportDim.AUTO} if value.ndim > 0 else None
    if pytree.tree_is_leaf(value):
        return None
    kind = pytree._get_node_type(value)
    node = pytree.SUPPORTED_NODES[kind]
    parts, context = node.flatten_fn(value)
    shapes = [_open_shapes(part) for part in parts]
    return node.unflatten_fn(shapes, context) if kind in pytree.BUILTIN_TYPES else shapes


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


def _batch_of_two(inputs: Inputs) -> Inputs:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not tensors or any(tensor.shape[0] != 1 for tensor in tensors):
        return inputs

    def twice(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0:
            return torch.cat([value, value])
        return value

    return pytree.tree_map(twice, inputs)


@contextmanager
def _spelt_out(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without the fast path of attention, whose one operator hides a whole layer."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Changes(TorchFunctionMode):
    """Passes on a switch of gradients only where it changes something."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and args[0] == torch.is_grad_enabled():
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_idle_switches(model: nn.Module) -> Iterator[None]:
    """Regions without gradients inside a custom ``torch.autograd.Function`` are not traced as such.

    A Function's forward runs without gradients, which a trace does not see. When a ``no_grad`` in there ends,
    it sets what it found, "without", and the trace would take that for the whole rest of the model. The mode
    has to lie above the tracer's, so it begins in the model's forward, which is as it was afterwards.
    """
    forward = model.forward
    own = vars(model).get("forward")

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with _Changes():
            return forward(*args, **kwargs)

    object.__setattr__(model, "forward", watched)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(model, "forward")
        else:
            object.__setattr__(model, "forward", own)


# --- Output types ---------------------------------------------------------------------------------------


def _learn_types(model: nn.Module, inputs: Inputs) -> bool:
    """Teach torch's pytree the types of outputs it does not know, such as dataclasses and caches.

    torch.export refuses what it cannot take apart. Taken apart by its attributes, any plain object passes.

    Returns:
        Whether there was such a type.
    """
    try:
        copies = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        twin = copy.deepcopy(model)  # What a model counts is not counted up.
        with torch.no_grad(), torch.random.fork_rng():
            found = twin(*copies[0], **copies[1])
    except Exception:  # the trace that follows meets the same error and explains it
        return False
    return _register_opaque((inputs, found))


def _register_opaque(values: Any) -> bool:
    """Register every type of object that the pytree cannot take apart; whether there was one."""
    registered = False
    while unknown := {type(leaf) for leaf in pytree.tree_leaves(values) if _is_opaque(leaf)}:
        for kind in unknown:
            pytree.register_pytree_node(
                kind, _take_apart, _put_together, flatten_with_keys_fn=_take_apart_with_names
            )
            registered = True
    return registered


def _is_opaque(leaf: Any) -> bool:
    return (
        hasattr(leaf, "__dict__")
        and not isinstance(leaf, Tensor | nn.Module | type)
        and any(isinstance(value, Tensor | list | tuple | dict) for value in vars(leaf).values())
    )


def _take_apart_with_names(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
    parts = {
        name: part
        for name, part in vars(value).items()
        if any(isinstance(leaf, Tensor) or _is_opaque(leaf) for leaf in pytree.tree_leaves(part))
    }
    rest = {name: part for name, part in vars(value).items() if name not in parts}
    return [(pytree.GetAttrKey(name), part) for name, part in parts.items()], (
        type(value),
        tuple(parts),
        rest,
    )


def _take_apart(value: Any) -> tuple[list[Any], Any]:
    named, context = _take_apart_with_names(value)
    return [part for _, part in named], context


def _put_together(parts: Iterable[Any], context: Any) -> Any:
    kind, names, rest = context
    value = kind.__new__(kind)
    vars(value).update(rest)
    vars(value).update(zip(names, parts, strict=True))
    return value


# --- Wrappers around operators ----------------------------------------------------------------------------

_WRAPPERS = {
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
    "wrap_activation_checkpoint": 0,
    "tag_activation_checkpoint": 0,
}
"""Higher-order operators that run a graph of their own, and where in their arguments it is."""


_CHECKS = ("_assert_tensor_metadata.default", "_assert_scalar.default", "_assert_async.msg")
"""Operators that only check: dtypes, of which proofs use others, and values, which the model checks."""


def _dissolve(module: GraphModule) -> None:
    """Put the operators inside wrappers in the wrappers' place.

    Gradients, checkpoints and a disabled autocast change no value in evaluation; an enabled autocast does, so
    it stays, and freezes what it touches. What ran without gradients reads its inputs detached, for the sake
    of training. Checks go as well.
    """
    pending = True
    while pending:
        pending = False
        for node in list(module.graph.nodes):
            place = (
                _WRAPPERS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
            )
            if place is None or (place == 4 and node.args[2]):
                continue
            inner = getattr(module, node.args[place].target)
            is_without = place == 1 and node.args[0] is False
            _inline(module, node, inner, node.args[place + 1 :], detaches=is_without)
            pending = True
    for node in list(module.graph.nodes):
        if getattr(node.target, "__name__", "") in _CHECKS:
            module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users and isinstance(getattr(module, node.target), GraphModule):
            module.graph.erase_node(node)
    module.recompile()


def _inline(
    module: GraphModule, call: Node, inner: GraphModule, inputs: tuple[Any, ...], *, detaches: bool
) -> None:
    mapped: dict[Node, Any] = {}
    given: dict[Node, Any] = {}
    outputs: Any = None
    with module.graph.inserting_before(call):
        for node, value in zip(inner.graph.find_nodes(op="placeholder"), inputs, strict=False):
            given[node] = value
            mapped[node] = _detached(module, value) if detaches else value
        for node in inner.graph.nodes:
            if node.op == "output":
                outputs = map_arg(node.args[0], lambda item: given.get(_written_to(item), mapped[item]))
            elif node.op != "placeholder":
                copy = module.graph.node_copy(node, lambda item: mapped[item])
                if node.op == "get_attr":
                    copy.target = f"{call.name}_{node.target}".replace(".", "_")
                    setattr(module, copy.target, getattr(inner, node.target))
                mapped[node] = copy
    for user in list(call.users):
        if user.op == "call_function" and user.target is operator.getitem:
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
    if call.users:
        call.replace_all_uses_with(outputs)
    module.graph.erase_node(call)


def _detached(module: GraphModule, value: Any) -> Any:
    """A node that gives the same numbers without their history, where numbers can have one."""
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return value
    node = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta.update(value.meta)
    return node


def _written_to(node: Node) -> Node:
    """The tensor that a chain of operators in place gives back."""
    while isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        first = node.target._schema.arguments[0].alias_info
        if first is None or not first.is_write or not isinstance(node.args[0], Node):
            break
        node = node.args[0]
    return node


# --- What went wrong --------------------------------------------------------------------------------------


def _explain(model: nn.Module, inputs: Inputs, error: Exception) -> TraceError:
    name = type(model).__name__
    text = (str(error).strip().splitlines() or [""])[0]
    mismatch = _signature_mismatch(model, inputs)
    if mismatch:
        return TraceError(
            f"{name}.forward cannot be called with these example inputs: {mismatch}",
            expected=f"inputs for forward{inspect.signature(model.forward)}",
            remedy="Give the example inputs it needs, as in pk.prune(model, args, kwargs)",
        )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and "/prunekit/" not in frame.filename and frame.line
    ]
    own = [frame for frame in frames if "/lib/python" not in frame.filename] or frames
    where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else name
    return TraceError(
        f"torch.export cannot trace {name}: {type(error).__name__}: {text}",
        where=where,
        remedy=(
            "Check that the example inputs are what its forward takes and that it does not branch on tensor "
            "values; a submodule that traces can still be pruned alone, as in pk.prune(model.backbone, ...)"
        ),
    )


def _signature_mismatch(model: nn.Module, inputs: Inputs) -> str:
    """Why the inputs cannot be bound to forward's parameters; "" where they can."""
    try:
        inspect.signature(model.forward).bind(*inputs[0], **inputs[1])
    except TypeError as error:
        return str(error)
    return ""
