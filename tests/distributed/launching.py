"""Starts processes that are connected by gloo and run one function, and collects what they give."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 20
"""How long a process waits for another."""


def launch(
    function: str, size: int, directory: Path, *arguments: str, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """What each process returned.

    Args:
        function: such as ``tests.distributed.statistics:everything``; is given the ranks and the arguments.
        size: number of processes.
        directory: an empty one.
        arguments: of the function.
        timeout_s: how long a process waits for another.
    """
    ended = start(function, size, directory, *arguments, timeout_s=timeout_s)
    assert all(process.returncode == 0 for process in ended), [process.stderr[-2000:] for process in ended]
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(size)]


def launched_once(
    functions: Mapping[int, str], folders: pytest.TempPathFactory
) -> Callable[[int], list[Any]]:
    """Of a number of processes, what each of them returned; launched when it is first asked for.

    Args:
        functions: by the number of processes, what they run.
        folders: makes a directory for each launch.
    """

    @cache
    def outcome(size: int) -> list[Any] | AssertionError:
        try:
            return launch(functions[size], size, folders.mktemp(f"of{size}"))
        except AssertionError as error:
            return error

    def launched(size: int) -> list[Any]:
        found = outcome(size)
        if isinstance(found, AssertionError):
            raise found
        return found

    return launched


def start(
    function: str, size: int, directory: Path, *arguments: str, timeout_s: float = TIMEOUT_S
) -> list[subprocess.CompletedProcess[str]]:
    """The processes once they ended, however they did; those that hang are killed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                function,
                str(rank),
                str(size),
                str(directory),
                str(timeout_s),
                *arguments,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ended = []
    for process in processes:
        try:
            out, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return ended


def _work(
    function: str, rank: int, size: int, directory: Path, timeout_s: float, arguments: list[str]
) -> None:
    from prunekit.ranks import all_ranks

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(all_ranks(), *arguments)
    torch.save(found, directory / f"{rank}.pt")
    torch.distributed.barrier()  # One that ends while another still connects may abort.
    torch.distributed.destroy_process_group()
    # Threads of a collective that failed may be left, and then the interpreter aborts at its own end.
    os._exit(0)


if __name__ == "__main__":
    _work(
        sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5]), sys.argv[6:]
    )
