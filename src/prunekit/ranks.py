"""Several processes that work together: which one this is, and what they tell each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from prunekit import errors
from prunekit.errors import PrunekitError, RankError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

AT_ONCE = 2**20
"""Values of each process that are sent at once when tensors are added."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, of which this is one; ``Ranks()`` is this process alone.

    All methods but the properties must be called by every process of the group, in the same order. Each
    begins with a message that says what the process is about to do, so that processes that are about to do
    different things, and an error of one process, give an error on all of them and not a deadlock.
    With one process nothing is sent.

    How long a process waits for the others is the timeout of the group, see
    ``torch.distributed.init_process_group(timeout=...)``.

    Attributes:
        group: the processes; None = this one alone.
    """

    group: ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        if self.group is None:
            return 0
        import torch.distributed

        return torch.distributed.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        if self.group is None:
            return 1
        import torch.distributed

        return torch.distributed.get_world_size(self.group)

    @property
    def is_first(self) -> bool:
        """This is the process that writes what all have in common."""
        return self.rank == 0

    def gather(self, value: Any, what: str) -> list[Any]:
        """Give every process what each of them gave.

        Args:
            value: whatever JSON holds; it goes over the network as JSON, never as pickle.
            what: what this is about; the same on all processes.

        Returns:
            The values by rank.

        Raises:
            RankError: the processes are not about to do the same, or one is lost.
            PrunekitError: another process gave up; its error.
        """
        if self.size == 1:
            return [value]
        messages = [json.loads(text) for text in self._exchange(json.dumps({"what": what, "value": value}))]
        _raise_first(messages)
        about = [message["what"] for message in messages]
        if len(set(about)) > 1:
            parts = ", ".join(f"rank {rank}: {each}" for rank, each in enumerate(about))
            raise _on_all(
                RankError(
                    f"The processes are not about to do the same ({parts})",
                    expected="all of them to make the same calls in the same order",
                )
            )
        return [message["value"] for message in messages]

    def wait(self, what: str) -> None:
        """Go on when all processes are here."""
        self.gather(None, what)

    def first(self, value: Any, what: str) -> Any:
        """Give every process what the first one gave; see :meth:`gather`."""
        return self.gather(value if self.is_first else None, what)[0]

    def check_same(self, value: Any, what: str) -> None:
        """Make sure that all processes hold the same.

        Args:
            value: whatever JSON holds, such as a digest; floats are compared bit by bit.
            what: what it is, such as "the plan".

        Raises:
            RankError: some differ from the first; their ranks are named.
        """
        found = [json.dumps(each, sort_keys=True) for each in self.gather(value, f"compare {what}")]
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            shown = ", ".join(f"rank {rank}: {found[rank][:40]}" for rank in (0, *others[:3]))
            raise _on_all(
                RankError(
                    f"It is not the same on all processes: {_named(others)} from rank 0 ({shown})",
                    where=what,
                    remedy="Give every process the same model, settings and seed, and gather statistics over "
                    "all of them with ranks=",
                )
            )

    def sum(self, tensor: Tensor, what: str) -> Tensor:
        """Add up a tensor over all processes, from rank 0 upwards, with the same bits on each.

        Args:
            tensor: of the same shape and dtype on all processes; give float64 or integers where the order of
                a sum must not be seen.
            what: what it is; the same on all processes.

        Returns:
            A new tensor on the same device. Memory: a piece of :data:`AT_ONCE` values of every process.

        Raises:
            RankError: shapes or dtypes differ, the processes do not do the same, or one is lost.
        """
        return self._added(tensor, what, lambda one, other: one.add_(other))

    def sum_all(self, tensors: Sequence[Tensor], what: str) -> list[Tensor]:
        """:meth:`sum` of several tensors of one dtype, which travel together; each is given on its device."""
        import torch

        if self.size == 1 or not tensors:
            return [tensor.clone() for tensor in tensors]
        flat = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])
        totals = self.sum(flat, what).split([tensor.numel() for tensor in tensors])
        return [
            total.reshape(tensor.shape).to(tensor.device)
            for total, tensor in zip(totals, tensors, strict=True)
        ]

    def largest(self, tensor: Tensor, what: str) -> Tensor:
        """The largest value of each entry over all processes; as :meth:`sum`."""
        import torch

        return self._added(tensor, what, lambda one, other: one.copy_(torch.maximum(one, other)))

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """All processes do what is inside, or all raise the error of the first that could not.

        What is inside may exchange things itself. Errors of prunekit keep their class and name the rank;
        every other exception becomes a :class:`prunekit.errors.RankError` that tells of it.

        Args:
            what: what is done; the same on all processes.
        """
        try:
            yield
        except Exception as error:
            if self.size == 1 or (isinstance(error, PrunekitError) and error.on_all_ranks):
                raise
            if isinstance(error, RankError):  # A process is lost: nobody is left to talk to.
                raise
            self._give_up(error)
        self.gather(None, f"end of {what}")

    def _give_up(self, error: Exception) -> NoReturn:
        """Tell all others of an error, and raise what they raise."""
        messages = [json.loads(text) for text in self._exchange(json.dumps(_told(error)))]
        _raise_first(messages, error)
        raise error

    def _added(self, tensor: Tensor, what: str, add: Callable[[Tensor, Tensor], object]) -> Tensor:
        import torch
        from torch import distributed

        form = [list(tensor.shape), str(tensor.dtype)]
        forms = self.gather(form, what)
        if any(each != forms[0] for each in forms):
            raise _on_all(RankError(f"Shapes or dtypes differ between the processes: {forms}", where=what))
        if self.size == 1 or not tensor.numel():
            return tensor.clone()
        device = _device(self.group)
        pieces = []
        for piece in tensor.detach().reshape(-1).split(AT_ONCE):
            mine = piece.to(device).contiguous()
            found = [torch.empty_like(mine) for _ in range(self.size)]
            self._send(lambda found=found, mine=mine: distributed.all_gather(found, mine, group=self.group))
            for other in found[1:]:
                add(found[0], other)
            pieces.append(found[0].to(tensor.device))
        return torch.cat(pieces).reshape(tensor.shape)

    def _exchange(self, text: str) -> list[str]:
        """Texts by rank."""
        import torch
        from torch import distributed

        device = _device(self.group)
        content = text.encode()
        length = torch.tensor([len(content)], device=device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        self._send(lambda: distributed.all_gather(lengths, length, group=self.group))
        longest = max(int(each) for each in lengths)
        mine = torch.frombuffer(bytearray(content.ljust(longest)), dtype=torch.uint8).to(device)
        found = [torch.empty_like(mine) for _ in lengths]
        self._send(lambda: distributed.all_gather(found, mine, group=self.group))
        return [bytes(each.cpu().tolist()).decode() for each in found]

    def _send(self, send: Callable[[], object]) -> None:
        try:
            send()
        except RuntimeError as error:  # What torch.distributed raises, its DistError included.
            raise RankError(
                f"Rank {self.rank} of {self.size} lost touch with the others ({error})",
                remedy="Look for the first error among the processes; one was ended, or took longer than the "
                "timeout that init_process_group was given",
            ) from error


ALONE = Ranks()
"""This process and no other."""


def all_ranks() -> Ranks:
    """All processes that ``torchrun`` or ``accelerate launch`` started; this one alone where none did.

    They have to be connected already: ``torch.distributed.init_process_group()``, or accelerate's
    ``Accelerator()``.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    group = distributed.group.WORLD
    return ALONE if group is None or distributed.get_world_size() == 1 else Ranks(group)


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor of which each process holds a part (a ``DTensor``, as FSDP2 makes them).

    All processes that hold a part must call this, in the same order. Any other tensor is given as it is.
    """
    return tensor.full_tensor() if is_parted(tensor) else tensor  # pyright: ignore


def is_parted(tensor: Tensor) -> bool:
    """Each process holds a part of the tensor: it is a ``DTensor``."""
    known = sys.modules.get("torch.distributed.tensor")  # Nobody has made one before it was imported.
    return known is not None and isinstance(tensor, known.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Processes hold parts of the model: FSDP1 or FSDP2 has parted it, or a part of it."""
    known = sys.modules.get("torch.distributed.fsdp")
    kinds = () if known is None else (known.FSDPModule, known.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules()) or any(
        map(is_parted, model.parameters())
    )


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory; all of one that is not parted."""
    return tensor.to_local() if is_parted(tensor) else tensor  # pyright: ignore


def resharded(model: nn.Module) -> None:
    """Let a model that FSDP2 shards hold parts again: after a forward pass its root holds whole tensors."""
    known = sys.modules.get("torch.distributed.fsdp")
    if known is None:
        return
    for module in model.modules():
        if isinstance(module, known.FSDPModule):
            module.reshard()  # pyright: ignore[reportCallIssue]


def like(values: Tensor, model: Tensor) -> Tensor:
    """Values that every process has, parted as ``model`` is; nothing is sent.

    Args:
        values: of any shape.
        model: says how: a ``DTensor``, or another tensor for no parting.

    Raises:
        RankError: it is parted in a way that is not known here (by blocks inside of blocks, or into sums).
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    if not isinstance(model, DTensor):
        return values
    if any(type(placement) not in (Shard, Replicate) for placement in model.placements):
        raise RankError(
            f"A tensor is placed by {list(model.placements)}",
            expected="Shard and Replicate",
            remedy="Shard with fully_shard() alone, without tensor parallelism",
        )
    return distribute_tensor(values, model.device_mesh, model.placements, src_data_rank=None)


def _named(ranks: list[int]) -> str:
    names = ", ".join(str(rank) for rank in ranks)
    return f"rank {names} differs" if len(ranks) == 1 else f"ranks {names} differ"


def _told(error: Exception) -> dict[str, str]:
    """What a process says of its error."""
    if isinstance(error, PrunekitError):
        told = {"given": error.given, "expected": error.expected, "where": error.where}
        return {"error": type(error).__name__, **told, "remedy": error.remedy}
    return {
        "error": RankError.__name__,
        "given": f"It stopped with {type(error).__name__}: {error}",
        "expected": "",
        "where": "",
        "remedy": "",
    }


def _raise_first(messages: list[dict[str, Any]], own: Exception | None = None) -> None:
    """Raise the error of the first rank that has one, if any has; the same on all ranks."""
    for rank, message in enumerate(messages):
        if "error" in message:
            kind = getattr(errors, message["error"], RankError)
            where = f"rank {rank}, {message['where']}" if message["where"] else f"rank {rank}"
            told = {"expected": message["expected"], "where": where, "remedy": message["remedy"]}
            raise _on_all(kind(message["given"], **told)) from own


def _on_all(error: PrunekitError) -> PrunekitError:
    """Mark an error that every process raises."""
    error.on_all_ranks = True
    return error


def _device(group: ProcessGroup | None) -> torch.device:
    """Where tensors have to lie that the group sends."""
    import torch
    from torch import distributed

    backend = distributed.get_backend_config(group)
    if "cpu" in backend or "gloo" in backend or "mpi" in backend:
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")
