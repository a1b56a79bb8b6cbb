"""All that a training run needs to go on, as a value that a checkpoint can hold."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunekit.recover.training.budget import Spent
from prunekit.recover.training.settings import EpochRecord
from prunekit.recover.training.tensors import copy_into, named_tensors
from prunekit.workload import device_of

if TYPE_CHECKING:
    from prunekit.recover.training.run import Run

FREE = ("workers",)
"""Settings that change nothing in the result."""


def state_of(run: Run) -> dict[str, Any]:
    """Everything that differs from step to step."""
    return {
        "model": named_tensors(run.model),
        "objective": _own_tensors(run.objective),
        "optimizer": run.stepper.optimizer.state_dict(),
        "best": run.best_state,
        "average": run.average.state_dict() if run.average else None,
        "companions": [companion.state_dict() for companion in run.companions],
        "random": run.ranks.gather(_random_state(run), "random states"),
        "run": {
            "spent": asdict(replace(run.spent, seconds=run.seconds())),
            "log": [asdict(line) for line in run.log],
            "best": run.best,
            "settled": run.settled,
            "total": run.total,
            "seen": run.seen,
        },
    }


def go_on_from(state: dict[str, Any], run: Run) -> None:
    """Put a run where :func:`state_of` was taken.

    A process that was not there then keeps the random state that its seed gives.
    """
    copy_into(named_tensors(run.model), state["model"])
    copy_into(_own_tensors(run.objective), state["objective"])
    run.stepper.optimizer.load_state_dict(state["optimizer"])
    copy_into(run.best_state, state["best"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    for companion, own in zip(run.companions, state["companions"], strict=True):
        companion.load_state_dict(own)
    if run.ranks.rank < len(state["random"]):
        _set_random_state(state["random"][run.ranks.rank], run)
    at = state["run"]
    run.spent, run.before = Spent(**at["spent"]), at["spent"]["seconds"]
    run.log = [EpochRecord(**line) for line in at["log"]]
    run.settled, run.best, run.total, run.seen = at["settled"], at["best"], at["total"], at["seen"]
    run.resumed_at = run.saved_step = run.spent.steps


def tensor_at(place: str, run: Run) -> Tensor:
    """The tensor that is spread over the processes as the one at that place of the state is to be."""
    room, _, name = place.partition("/")
    if room == "optimizer":
        trained = [each for group in run.stepper.optimizer.param_groups for each in group["params"]]
        return trained[int(name.split("/")[1])]
    if room == "objective":
        return _own_tensors(run.objective)[name]
    return named_tensors(run.model)[name.removeprefix("tensors/")]


def identity_of(run: Run) -> dict[str, str]:
    """What has to be the same where a run goes on, in words that an error can show."""
    settings = {name: repr(value) for name, value in asdict(run.settings).items() if name not in FREE}
    form = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named_tensors(run.model).items()]
    return {
        **settings,
        "model": hashlib.sha256(repr(form).encode()).hexdigest()[:12],
        "objective": _name(run.objective),
        "companions": ", ".join(map(_name, run.companions)),
        **{
            f"{split.name} data": f"{len(split)} examples {split.quick_digest()[:12]}"
            for split in (run.task.train, run.task.validation)
        },
    }


def _own_tensors(objective: object) -> dict[str, Tensor]:
    return named_tensors(objective) if isinstance(objective, nn.Module) else {}


def _random_state(run: Run) -> dict[str, list[int]]:
    found = {"torch": torch.get_rng_state(), "augmentation": run.generator.get_state()}
    device = device_of(run.model)
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return {name: state.tolist() for name, state in found.items()}


def _set_random_state(state: dict[str, list[int]], run: Run) -> None:
    found = {name: torch.tensor(values, dtype=torch.uint8) for name, values in state.items()}
    torch.set_rng_state(found["torch"])
    run.generator.set_state(found["augmentation"])
    device = device_of(run.model)
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)


def _name(thing: object) -> str:
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"  # type: ignore[attr-defined]
