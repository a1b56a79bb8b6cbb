"""Taking logits, hidden states and attention maps out of a model that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from prunekit.errors import SelectionError, TrainingError

LOGITS, HIDDEN, ATTENTION = "logits", "hidden", "attention"

LogitsOf = Callable[[Any], Tensor]
"""``logits_of(outputs)``, the logits in what a model gives."""

Heard = dict[tuple[str, str], Tensor]
"""By kind and module, what the module gave."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model with the names that its modules had before it was wrapped for training.

    Wrappers are those of data parallelism and compilation, and adapters of peft.
    """
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    base = getattr(inner, "get_base_model", None)
    return base() if callable(base) else inner  # pyright: ignore


def logits_in(outputs: Any) -> tuple[str, Tensor] | None:
    """The logits in what a model gave, and what they are called there.

    1. A tensor is the logits.
    2. Of a mapping or an object it is what is called ``logits``.
    3. Of a tuple or list it is the first floating tensor of two dimensions or more: a loss may come first.
    """
    if isinstance(outputs, Tensor):
        return "the output", outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return "'logits'", named
    if isinstance(outputs, tuple | list) and not hasattr(outputs, "_fields"):
        for place, item in enumerate(outputs):
            if isinstance(item, Tensor) and item.is_floating_point() and item.ndim >= 2:
                return f"item {place} of {len(outputs)}", item
    return None


def find_logits(outputs: Any, logits_of: LogitsOf | None, whose: str) -> tuple[str, Tensor]:
    """What the logits are called in a model's outputs, and they themselves.

    Raises:
        TrainingError: there are none.
    """
    found = logits_in(outputs) if logits_of is None else ("what logits_of gives", logits_of(outputs))
    if found is None or not isinstance(found[1], Tensor) or found[1].ndim < 2:
        raise TrainingError(
            f"no logits were found in {describe(outputs)}",
            expected="a tensor [examples, ..., classes], something called 'logits', or a tuple with one",
            where=f"outputs of the {whose}",
            remedy="Give logits_of=, a function of the outputs; or logits=0 to compare hidden states only",
        )
    return found


def describe(outputs: Any) -> str:
    """What a model gave, for a message."""
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} of {', '.join(map(str, outputs)) or 'nothing'}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return f"a {type(outputs).__name__}"


@contextmanager
def listening(model: nn.Module, names: Sequence[tuple[str, str]], whose: str) -> Iterator[Heard]:
    """Note what modules give while the model runs inside; no hook stays, also after an exception.

    Args:
        model: unwrapped.
        names: kinds and names of modules, ``("hidden", "encoder.layer.0")``; ``""`` is the model itself.
        whose: for messages, ``student`` or ``teacher``.

    Yields:
        What was heard; complete at the end.

    Raises:
        SelectionError: the model has no such module.
        TrainingError: a module gave nothing of the kind, was called again, or was not called.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    heard: Heard = {}
    handles = []
    try:
        for kind, name in dict.fromkeys(names):
            if name not in modules:
                raise _no_such(model, name, whose)
            handles.append(modules[name].register_forward_hook(_noting(heard, kind, name, whose)))
        yield heard
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for kind, name in names if (kind, name) not in heard]
    if missing:
        raise _uncalled(missing[0], whose, "was not called")


def _noting(heard: Heard, kind: str, name: str, whose: str) -> Any:
    read = _first_tensor if kind == HIDDEN else _first_map

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        found = read(output)
        if found is None:
            raise _nothing_of(kind, name, whose, output)
        if (kind, name) in heard:
            raise _uncalled(name, whose, "was called twice")
        heard[kind, name] = found

    return hook


def _uncalled(name: str, whose: str, what: str) -> TrainingError:
    return TrainingError(
        f"the module {name!r} of the {whose} {what}",
        expected="a module that runs once in every forward pass, uncompiled",
        where="distillation",
        remedy="Name another module, or compile the model after its training; of a graph module, which calls "
        "none, distil the logits only, or prune with form='own class'",
    )


def _first_tensor(output: Any) -> Tensor | None:
    return next((item for item in _items(output) if item.is_floating_point() and item.ndim >= 2), None)


def _first_map(output: Any) -> Tensor | None:
    """The first ``[examples, heads, queries, keys]``."""
    return next((item for item in _items(output) if item.is_floating_point() and item.ndim == 4), None)


def _items(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (item for item in output.values() if isinstance(item, Tensor))
    elif isinstance(output, tuple | list):
        yield from (item for item in output if isinstance(item, Tensor))


def _nothing_of(kind: str, name: str, whose: str, output: Any) -> TrainingError:
    if kind == HIDDEN:
        return TrainingError(
            f"it gave {describe(output)}, in which there is no hidden state",
            expected="a floating tensor of two dimensions or more",
            where=f"module {name!r} of the {whose}",
            remedy="Name another module in hidden_modules",
        )
    return TrainingError(
        f"it gave {describe(output)}, in which there is no attention map: fused attention computes none",
        expected="attention probabilities [examples, heads, queries, keys]",
        where=f"module {name!r} of the {whose}",
        remedy="With transformers, call set_attn_implementation('eager') on teacher and student; else name "
        "the module that gives the probabilities in attention_modules",
    )


def _no_such(model: nn.Module, name: str, whose: str) -> SelectionError:
    near = name.rpartition(".")[0]
    known = [each for each, _ in model.named_modules() if each and each.rpartition(".")[0] == near]
    known = known or [each for each, _ in model.named_modules() if each]
    return SelectionError(
        f"the {whose}, a {type(model).__name__}, has no module {name!r}",
        expected=f"one of {', '.join(known[:10])}" if known else "a model with modules",
        where="distillation",
        remedy="A graph module has no modules of its own: distil its logits, or prune with form='own class'",
    )
