"""Removal from a model that no single process holds: its architecture first, then values one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunekit.errors import PlanError, ProofError, TraceError
from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.ranks import Ranks, like, own_part, resharded, whole
from prunekit.surgery.compare import fresh_inputs
from prunekit.surgery.configuration import fit_depth, fit_widths
from prunekit.surgery.graph_form import GraphForm, form_of
from prunekit.surgery.narrow import narrow, touched
from prunekit.surgery.remove import (
    Removal,
    check_fits,
    graph_form,
    reduced_graph,
    sizes_of,
    without_gone_groups,
)
from prunekit.surgery.repair import attempts, follow_shapes
from prunekit.surgery.shorten import counters, fields_that_count, names_before, shorten
from prunekit.surgery.tensors import copied, read, replace_everywhere
from prunekit.types import KeepMask
from prunekit.workload import evaluating

SAME_GRAPH = "its trace runs the operators of the pruned graph"


def remove_sharded(
    model: nn.Module,
    plan: PruningPlan,
    groups: Groups,
    meta: nn.Module,
    *,
    shard: Callable[[nn.Module], object] | None,
    ranks: Ranks,
) -> Removal:
    """Make the smaller model that ``plan`` describes from one that FSDP2 shards, which is left as it is.

    1. The plan, and what is asked, is the same on all processes, or an error on all.
    2. The architecture is made on the meta device, from the user's class. It is accepted if its trace runs
       the very operators of the pruned graph; there are no values to compare yet.
    3. ``shard`` is applied to it, as it was to the dense model.
    4. Parameter by parameter, the dense one is gathered, narrowed and parted again; each process keeps its
       own part. Buffers and plain tensors are copied in the same way.

    Memory on each process: its share of the smaller model and one whole parameter at a time.

    Args:
        model: the dense model, sharded by ``torch.distributed.fsdp.fully_shard`` or replicated.
        plan: made on ``groups``.
        groups: found in ``meta``.
        meta: the same architecture on the meta device, not sharded, of the same dtypes.
        shard: what was called to shard ``model``: it applies ``fully_shard`` to the smaller model in place.
            None leaves it whole on every process.
        ranks: the processes that hold ``model``; all of them call this.

    Returns:
        The smaller model in its own class, in the mode of ``model``; ``form_error`` is 0, because equal
        graphs compute the same.

    Raises:
        PlanError: the plan was made for another model, or ``meta`` is not this model's architecture.
        ProofError: the class does not follow the plan. There is no graph module in its place: nobody could
            say how to shard it.
        RankError: the processes do not hold the same plan, one stopped or is lost.
    """
    with ranks.together("remove_sharded"):
        resharded(model)
        check_fits(model, plan, groups)
        _check_twin(model, meta)
        ranks.check_same(plan.digest, "the plan")
        keep = without_gone_groups(plan.keep_mask(), groups)
        small = smaller_architecture(meta, keep, groups)
        shapes = [[name, list(each.shape)] for name, each in small.model.named_parameters()]
        ranks.check_same(shapes, "the smaller architecture")
        _give_values(small, model, groups, keep, shard)
    moved = {new: old for new, old in small.names.items() if new != old}
    return Removal(small.model, "own class", small.reason, 0.0, moved)


@dataclass(frozen=True)
class Architecture:
    """A model on the meta device.

    Attributes:
        model: on the meta device.
        names: by the name of each of its parameters and buffers, the one in the dense model.
        reason: how it is known to be right.
    """

    model: nn.Module
    names: Mapping[str, str]
    reason: str


def smaller_architecture(meta: nn.Module, keep: KeepMask, groups: Groups) -> Architecture:
    """The user's class at the sizes that ``keep`` leaves, without any values.

    Args:
        meta: the model the groups were found in.
        keep: by group name, ``[units]`` bool.
        groups: of ``meta``.

    Raises:
        ProofError: its trace does not run the operators of the pruned graph.
    """
    if groups.inputs:
        raise ProofError(
            f"The example inputs of {type(meta).__name__} hold a cache, which shrinks with the model",
            expected="a model traced without a cache",
            remedy="Trace it on whole sequences with use_cache=False; the plan is for that model too",
        )
    widths = {name: mask for name, mask in keep.items() if not groups.whole(name).is_depth}
    narrowed = {name: _narrowed(meta, groups, name, widths) for name in touched(groups, widths)}
    own = copied(meta)
    for name, tensor in narrowed.items():
        replace_everywhere(own, meta, name, tensor)
    graph_module, changes = graph_form(meta, groups, widths, narrowed)
    with evaluating(own):
        follow_shapes(own, narrowed, changes)
    search = _Search(own, groups, _form(graph_module, groups))
    difference = search.difference()
    if difference:
        for guesses in attempts(own, changes):
            if not search.difference():
                search.undo_needless(guesses)
                difference = ""
                break
    if not difference and groups.bypassed(keep):
        search, difference = _without_layers(search, meta, keep)
    if difference:
        raise ProofError(
            f"The class {type(meta).__name__} does not follow the plan: {difference}",
            expected="the operators of the pruned graph, so that nothing has to be compared",
            remedy="Leave groups out with ignore= or only=, or remove before the model is sharded",
        )
    return Architecture(search.own, search.names, SAME_GRAPH + _described(search, keep))


@dataclass(frozen=True)
class _Search:
    """The class on the meta device, and the form that its graph has to have.

    Attributes:
        own: the class.
        groups: of the dense model.
        wanted: the pruned graph.
        depth: its tensors by the names of the dense model, where layers before them went.
    """

    own: nn.Module
    groups: Groups
    wanted: GraphForm
    depth: Mapping[str, str] | None = None

    @property
    def names(self) -> Mapping[str, str]:
        """By the name of each parameter and buffer, the one in the dense model."""
        return self.depth or {name: name for name in _named(self.own)}

    def difference(self) -> str:
        """How the class differs from the pruned graph; "" where it does not."""
        try:
            args, kwargs = fresh_inputs(self.groups.graph)
            with evaluating(self.own), torch.no_grad():
                self.own(*args, **kwargs)  # Faster than tracing what does not run.
        except Exception as error:  # whatever the user's forward raises at sizes that do not fit
            return f"it does not run: {type(error).__name__}: {error}"
        try:
            return self.wanted.difference(_form(self.own, self.groups, self.names))
        except TraceError as error:
            return error.given

    def undo_needless(self, guesses: list) -> None:
        """An attribute that only happened to have the old width goes back to what it was."""
        for guess in guesses:
            new = getattr(guess.holders[0], guess.name)
            if new != guess.old:
                guess.set(guess.old)
                if self.difference():
                    guess.set(new)


def _without_layers(search: _Search, meta: nn.Module, keep: KeepMask) -> tuple[_Search, str]:
    """The same without layers that go whole; they are deleted from their lists, or else replaced."""
    groups = search.groups
    wanted = _form(reduced_graph(meta, keep, groups), groups)
    found = search, "it does not run without these layers"
    for deletes in (True, False):
        own = copied(search.own)
        shortened = shorten(own, groups, keep, deletes=deletes)
        if shortened and hasattr(own, "config"):
            fit_depth(own, fields_that_count(own.config, shortened))
        shorter = replace(search, own=own, wanted=wanted, depth=names_before(own, shortened))
        difference = shorter.difference()
        if difference and shortened:
            guesses = counters(shortened)
            for guess in guesses:
                guess.set(guess.options[0])
            if not shorter.difference():
                shorter.undo_needless(guesses)
                difference = ""
        if not difference:
            return shorter, ""
        found = found if not deletes else (shorter, difference)
    return found


def _described(search: _Search, keep: KeepMask) -> str:
    """Let the configuration follow, and say whether it did."""

    def is_own(other: nn.Module) -> bool:
        return not replace(search, own=other).difference()

    with torch.device("meta"):
        described = fit_widths(search.own, sizes_of(keep, search.groups), is_own)
    if described is None:
        return ""
    if described.holds:
        return "; its configuration builds it again"
    return f"; its configuration does not build it again: {described.reason}"


def _form(model: nn.Module, groups: Groups, names: Mapping[str, str] | None = None) -> GraphForm:
    graph = groups.graph
    signature = graph.program.graph_signature
    registered = {graph.tied.get(name, name) for name in (*signature.parameters, *signature.buffers)}
    every = {name: name for name in _named(model)} if names is None else names
    known = {new: graph.tied.get(old, old) for new, old in every.items()}
    known = {new: old for new, old in known.items() if old in registered}
    return form_of(model, (graph.args, graph.kwargs), known)


def _named(model: nn.Module) -> list[str]:
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return parameters + [name for name, _ in model.named_buffers(remove_duplicate=False)]


def _narrowed(meta: nn.Module, groups: Groups, name: str, keep: KeepMask) -> Tensor:
    found = read(meta, name)
    return narrow(groups, name, (groups.graph.tensor(name) if found is None else found).detach(), keep)


# --- Values -----------------------------------------------------------------------------------------------


def _check_twin(model: nn.Module, meta: nn.Module) -> None:
    """The meta model has the dense model's tensors."""
    real, planned = _looks(model), _looks(meta)
    for name in (*real, *planned):
        if real.get(name) != planned.get(name):
            raise PlanError(
                f"The tensor is {real.get(name)} in the model and {planned.get(name)} on the meta device",
                expected="the same names, shapes and dtypes in both",
                where=name,
                remedy="Build meta as the model was built, under torch.device('meta'), and cast it alike",
            )
    for name, each in meta.named_parameters():
        if not each.is_meta:
            raise PlanError(
                f"It lies on the device {each.device}",
                expected="the architecture alone, on the meta device",
                where=name,
                remedy="Build it under torch.device('meta')",
            )


def _looks(model: nn.Module) -> dict[str, str]:
    """Shape and dtype of every parameter and buffer."""
    found = (*model.named_parameters(), *model.named_buffers())
    return {name: f"a {each.dtype} of the shape {list(each.shape)}" for name, each in found}


def _ties(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters and buffers, with the first name of each."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name in _named(model):
        tensor = read(model, name)
        known = first.setdefault(id(tensor), name)
        if known != name:
            found[name] = known
    return found


def _set_same(model: nn.Module, name: str, first: str) -> None:
    """Put the tensor called ``first`` under ``name`` too."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    store = module._parameters if leaf in module._parameters else module._buffers
    store[leaf] = read(model, first)  # pyright: ignore[reportArgumentType]


def _give_values(
    small: Architecture,
    model: nn.Module,
    groups: Groups,
    keep: KeepMask,
    shard: Callable[[nn.Module], object] | None,
) -> None:
    """Shard the smaller model, make room for this process's part, and fill it."""
    tied = _ties(small.model)
    if shard is not None:
        shard(small.model)
    if missing := small.names.keys() - set(_named(small.model)):
        raise PlanError(
            f"After shard() the model has no tensor {min(missing)!r}",
            expected="the names it had: fully_shard() keeps them",
            where="shard",
        )
    small.model.to_empty(device=next((each.device for each in model.parameters()), torch.device("cpu")))
    for name, first in tied.items():
        _set_same(small.model, name, first)
    _fill(small, model, groups, keep)
    small.model.train(model.training)


@torch.no_grad()
def _fill(small: Architecture, model: nn.Module, groups: Groups, keep: KeepMask) -> None:
    """Give every tensor of the smaller model its values, one after the other."""
    widths = {name: mask for name, mask in keep.items() if not groups.whole(name).is_depth}
    losing = set(touched(groups, widths))
    aliases = groups.graph.tied
    for name, old in small.names.items():
        mine, dense = read(small.model, name), read(model, old)
        known = aliases.get(old, old)
        if mine is None or dense is None:
            raise PlanError("The dense model has no tensor of that name", where=old)
        if old != known and read(small.model, name) is read(small.model, known):
            continue
        values = whole(dense.detach())
        if known in losing:
            values = narrow(groups, known, values, widths)
        own_part(mine).copy_(own_part(like(values, mine)))
        if isinstance(mine, nn.Parameter):
            mine.requires_grad_(dense.requires_grad)
    moved = any(new != old for new, old in small.names.items())
    for path, attribute in list(_plain_tensors(small.model)):
        old = f"{path}.{attribute}" if path else attribute
        dense = read(model, old)
        if dense is None or dense.is_meta or moved:
            raise PlanError(
                "It is a plain tensor without values", where=old, remedy="Register it as a buffer"
            )
        values = narrow(groups, old, dense, widths) if old in losing else dense.clone()
        setattr(small.model.get_submodule(path), attribute, values)


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Attributes that are tensors without values, not registered: their module and name."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                yield path, name
