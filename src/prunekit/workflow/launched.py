"""The processes that torchrun or accelerate launch started together with this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from prunekit.ranks import ALONE, Ranks, all_ranks

PATIENCE = timedelta(hours=12)
"""How long processes wait for the first while it proves, exports and measures; a lost one is seen at once."""


@contextmanager
def launched_processes() -> Iterator[Ranks]:
    """Connect all processes of the launch, and disconnect them in the end; without a launch, this one alone.

    accelerate chooses the device of each process and the way they talk, from the variables that both
    launchers set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield ALONE
        return
    from accelerate import PartialState

    # Without it, deterministic matrix products on NVIDIA devices are an error.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    try:
        yield all_ranks()
        torch.distributed.barrier()  # One that ends while another still talks may abort.
    finally:
        torch.distributed.destroy_process_group()
