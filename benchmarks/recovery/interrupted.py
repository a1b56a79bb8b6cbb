"""Training that is stopped, killed and gone on with: what is lost, and how equal the weights are."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from benchmarks.recovery.cells import commit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

from prunekit.errors import RankError
from prunekit.files import write_atomically
from prunekit.measure import environment
from prunekit.ranks import Ranks, all_ranks, whole
from prunekit.recover import Checkpoints, Task, TrainingSettings, train
from prunekit.workload import Batch, Split

SETTINGS = TrainingSettings(
    epochs=5, batch_size=16, learning_rate=3e-3, optimizer="adamw", ema=0.9, clip_norm=1.0, accumulate=2
)
EPOCHS_KILLED, KILLS, FARTHEST, LONGEST_S = 40, 20, 10, 0.1
"""Of the run of one process: its length, its kills, and at most so many steps and seconds before each."""

EVERY, AT, PATIENCE_S = 3, 11, 60
"""Of several processes: steps between checkpoints, the step of the stop, how long one waits for another."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.recovery.__main__"])


class StoppedError(Exception):
    """All processes stop at a step, as they were asked to."""


@dataclass(frozen=True)
class Launch:
    """One or more processes that train the same network.

    Attributes:
        size: how many.
        form: of the model: ``whole`` on every process, or ``sharded`` over them.
        dropout: of the network; processes draw other numbers, so 0 where several are compared with one.
        epochs: of the whole run.
        checkpoints: their directory; None = none are written.
        every: steps from one checkpoint to the next.
        stop_at: a step after which all stop; 0 = none.
        dies: a rank that kills itself there instead, by SIGKILL; None = none.
    """

    size: int = 1
    form: str = "whole"
    dropout: float = 0.0
    epochs: int = 5
    checkpoints: Path | None = None
    every: int = EVERY
    stop_at: int = 0
    dies: int | None = None

    def start(self, place: Path) -> list[BaseProcess]:
        """Every process writes ``<rank>.safetensors``, or the name of its error to ``<rank>.txt``."""
        place.mkdir(parents=True)
        processes = [CONTEXT.Process(target=_work, args=(self, rank, place)) for rank in range(self.size)]
        for process in processes:
            process.start()
        return processes

    def run(self, place: Path) -> list[int | None]:
        """Exit codes by rank, when all have ended."""
        processes = self.start(place)
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]


def _work(launch: Launch, rank: int, place: Path) -> None:
    torch.set_num_threads(1)
    if launch.size > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{place}/store",
            rank=rank,
            world_size=launch.size,
            timeout=timedelta(seconds=PATIENCE_S),
        )
    try:
        save_file(_trained(launch, all_ranks()), place / f"{rank}.safetensors")
    except (RankError, StoppedError) as error:
        (place / f"{rank}.txt").write_text(type(error).__name__)
        return
    if launch.size > 1:
        torch.distributed.barrier()  # One that ends while another still connects may abort.
        torch.distributed.destroy_process_group()


def _trained(launch: Launch, ranks: Ranks) -> dict[str, Tensor]:
    """Last weights, the losses of the log, and the step that it went on from (-1: none)."""
    model, task = _network(launch.dropout)
    if launch.form == "sharded":
        mesh = init_device_mesh("cpu", (ranks.size,))
        for module in (model[0], model[4], model):
            fully_shard(module, mesh=mesh)

    def progress(done: int, _planned: int) -> None:
        if done == launch.stop_at and launch.dies is None:
            raise StoppedError
        if done == launch.stop_at and launch.dies == ranks.rank:
            os.kill(os.getpid(), signal.SIGKILL)

    where = launch.checkpoints
    checkpoints = Checkpoints(where, every_steps=launch.every) if where is not None else None
    settings = replace(SETTINGS, epochs=launch.epochs)
    record = train(model, task, settings, checkpoints=checkpoints, ranks=ranks, progress=progress)
    _check(record.best == len(record.epochs) - 1, "the best weights are not the last, and show no more")
    found = {name: whole(tensor).detach().clone() for name, tensor in model.named_parameters()}
    losses = [line.validation_loss for line in record.epochs]
    resumed = -1 if record.resumed_at is None else record.resumed_at
    return found | {"losses": torch.tensor(losses, dtype=torch.float64), "resumed": torch.tensor(resumed)}


def _network(dropout: float) -> tuple[nn.Sequential, Task]:
    """8 -> 64 -> 1, validated on its 93 training examples: the last weights are to be the best."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(93, 8, generator=generator)
    targets = (inputs @ torch.randn(8, 1, generator=generator)).tanh()
    splits = [Split(name, TensorDataset(inputs, targets)) for name in ("train", "validation")]
    torch.manual_seed(1)
    layers = (nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 1))
    return nn.Sequential(*layers), Task(_squared_error, *splits)


def _squared_error(outputs: Tensor, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(outputs, batch.target)


def killed_again_and_again(rounds: Iterator[Path]) -> dict[str, Any]:
    """One process with a checkpoint after every step, killed at moments that nobody chose."""
    uninterrupted = Launch(dropout=0.1, epochs=EPOCHS_KILLED)
    oracle = next(rounds)
    _check(uninterrupted.run(oracle) == [0], "the uninterrupted run")
    checkpoints = Checkpoints(next(rounds), every_steps=1)
    launch = replace(uninterrupted, checkpoints=checkpoints.directory, every=1)
    moments = random.Random(0)
    went_on, while_writing = [], 0
    while len(went_on) < KILLS:
        goal = _newest(checkpoints) + moments.randint(1, FARTHEST)
        (process,) = launch.start(next(rounds))
        while _newest(checkpoints) < goal and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, LONGEST_S))
        process.kill()
        process.join()
        _check(process.exitcode == -signal.SIGKILL, "a run ended before it was killed")
        went_on.append(_newest(checkpoints))
        while_writing += any(checkpoints.directory.glob(".step-*"))
    last = next(rounds)
    _check(launch.run(last) == [0], "the last run")
    expected, found = (load_file(each / "0.safetensors") for each in (oracle, last))
    _check(int(found.pop("resumed")) == went_on[-1] and expected.pop("resumed") == -1, "where it went on")
    return {
        "steps": EPOCHS_KILLED * -(-93 // SETTINGS.batch_size),
        "kills": len(went_on),
        "while_writing": while_writing,
        "went_on_after_steps": went_on,
        "equal": _equal(expected, found),
    }


def _newest(checkpoints: Checkpoints) -> int:
    latest = checkpoints.latest()
    return int(latest.name.removeprefix("step-")) if latest else 0


def several(rounds: Iterator[Path]) -> list[dict[str, Any]]:
    """Two processes against one: not interrupted, stopped and gone on by another number, one killed."""
    place = next(rounds)
    _check(Launch().run(place) == [0], "one process")
    alone, rows = load_file(place / "0.safetensors"), []
    for form, dies in (("whole", 1), ("sharded", 0)):
        pair = Launch(size=2, form=form)
        rows.append({"form": form, "event": "none"} | _compared(pair, next(rounds), alone))
        for size in (1, 3):
            stopped = replace(pair, checkpoints=next(rounds), stop_at=AT)
            _check(stopped.run(place := next(rounds)) == [0, 0], "a stopped run")
            later = replace(stopped, size=size, stop_at=0, form="whole" if size == 1 else form)
            rows.append({"form": form, "event": "stopped"} | _compared(later, next(rounds), alone))
        killed = replace(pair, checkpoints=next(rounds), stop_at=AT, dies=dies)
        codes = killed.run(place := next(rounds))
        _check(codes[dies] == -signal.SIGKILL, "a rank that was to be killed ended otherwise")
        about = {"rank": dies, "error_of_the_other": (place / f"{1 - dies}.txt").read_text()}
        again = _compared(replace(killed, stop_at=0, dies=None), next(rounds), alone)
        rows.append({"form": form, "event": "killed"} | about | again)
    return rows


def _compared(launch: Launch, place: Path, alone: dict[str, Tensor]) -> dict[str, Any]:
    """Run it to its end, beside one process that was not interrupted."""
    _check(launch.run(place) == [0] * launch.size, f"{launch}")
    found = [load_file(place / f"{rank}.safetensors") for rank in range(launch.size)]
    resumed = int(found[0]["resumed"])
    weights = alone.keys() - {"losses", "resumed"}
    off = [float((found[0][name] - alone[name]).abs().max() / alone[name].abs().max()) for name in weights]
    return {
        "processes": launch.size,
        "went_on_after_step": None if resumed < 0 else resumed,
        "steps_lost": None if resumed < 0 else AT - resumed,
        "ranks_equal": all(_equal(found[0], other) for other in found[1:]),
        "difference": max(off),
    }


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the last bit."""
    bits = [{name: each.numpy().tobytes() for name, each in found.items()} for found in (one, other)]
    return bits[0] == bits[1]


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise RuntimeError(f"Not as it was meant: {what}")


def measure_interrupted(into: Path) -> None:
    """Run everything, which takes a few minutes, and write ``recovery_interrupted.json``."""
    with tempfile.TemporaryDirectory() as directory:
        rounds = (Path(directory, f"{number:03}") for number in count())
        record = {
            "commit": commit(),
            "date": date.today().isoformat(),
            "environment": environment(1),
            "killed": killed_again_and_again(rounds),
            "rows": several(rounds),
        }
    write_atomically(into / "recovery_interrupted.json", json.dumps(record, indent=1).encode() + b"\n")
