"""All that a training run needs to go on, as a value that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunekit.files import content_digest
from prunekit.recover.training.budget import Spent
from prunekit.recover.training.settings import EpochRecord
from prunekit.recover.training.tensors import copy_into, named_tensors
from prunekit.surgery import WeightMask
from prunekit.workload import Split, device_of

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
    # Companions first: where one refuses its state, the model is as it was.
    for companion, own in zip(run.companions, state["companions"], strict=True):
        companion.load_state_dict(own)
    copy_into(named_tensors(run.model), state["model"])
    copy_into(_own_tensors(run.objective), state["objective"])
    run.stepper.optimizer.load_state_dict(state["optimizer"])
    copy_into(run.best_state, state["best"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
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
    """What has to be the same where a run goes on, in words that an error can show.

    Functions are told apart by their names. Masks count where nothing could change them in training.
    """
    settings = {name: repr(value) for name, value in asdict(run.settings).items() if name not in FREE}
    trained = [name for name, each in run.model.named_parameters() if each.requires_grad]
    task, chosen = run.task, getattr(run.objective, "settings", None)
    if not is_dataclass(chosen) or isinstance(chosen, type):
        chosen = None
    masks = [
        (name, module.packed.tolist())
        for name, module in run.model.named_modules()
        if isinstance(module, WeightMask) and not run.companions
    ]
    return {
        **settings,
        "model": _digest(_form(named_tensors(run.model))),
        "masks": _digest(masks),
        "trained parameters": f"{len(trained)} {_digest(trained)}",
        "objective": f"{_name(run.objective)} {_digest(_form(_own_tensors(run.objective)))}",
        **{
            f"{name} of the objective": repr(value)
            for name, value in (asdict(chosen) if chosen else {}).items()
        },
        "companions": ", ".join(map(_name, run.companions)),
        **{name: _name(getattr(task, name)) for name in ("loss", "score", "augment")},
        **{
            f"{split.name} data": f"{len(split)} examples {_data_digest(split)}"
            for split in (task.train, task.validation)
        },
    }


def _form(tensors: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def _digest(value: object) -> str:
    return content_digest(repr(value).encode())[:12]


def _data_digest(split: Split) -> str:
    """Of a few examples; of those that torch draws anew whenever they are read, always the same draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return split.quick_digest()[:12]


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
    if thing is None:
        return "none"
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"  # type: ignore[attr-defined]
