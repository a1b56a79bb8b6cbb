"""Recomputing the running statistics of batch and instance norms from a few unlabelled batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prunekit.errors import CalibrationError
from prunekit.importance.batches import ModelInputs, checked_batches
from prunekit.importance.untouched import untouched
from prunekit.ranks import ALONE, Ranks
from prunekit.workload import Batch, device_of


@dataclass(frozen=True)
class Recalibrated:
    """What a recalibration did.

    Attributes:
        norms: where statistics were recomputed: the modules' names, those of the graph's tensors alike.
        unused: norms with running statistics that no batch came through; as they were.
        batches: how many batches were run, by all processes together.
    """

    norms: tuple[str, ...]
    unused: tuple[str, ...]
    batches: int


def recalibrate_norms(
    model: nn.Module, calibration: Iterable[ModelInputs], *, ranks: Ranks = ALONE
) -> Recalibrated:
    """Set the running statistics of all norms to those of the given data; nothing else changes.

    For a batch norm, over all values ``x`` of a channel in all batches, ``n`` of them:
    ``running_mean = mean(x)`` and ``running_var = sum((x - mean(x))^2) / (n - 1)``. For an instance norm, the
    averages over all examples of each example's mean and of its variance, as PyTorch defines them.

    The model runs in evaluation mode, but every norm normalises each batch by the batch's own statistics, as
    in training: what follows it sees what it will see once the statistics are right. A norm counts, whatever
    class or graph it lies in, that calls PyTorch's batch or instance norm with buffers of the model:
    ``SyncBatchNorm`` and graph modules included. ``num_batches_tracked`` becomes the number of batches;
    momentum, modes, gradients and the random state stay. With several processes, each normalises its batches
    by their own statistics and all get those of all batches, the same bit by bit.

    Args:
        model: its buffers are changed in place, on the device they are on.
        calibration: unlabelled batches; larger ones are better (64 examples or more).
        ranks: the processes whose batches count, as in :func:`prunekit.importance.collect`.

    Returns:
        What was recomputed; nothing where the model has no norm with running statistics.

    Raises:
        CalibrationError: there are no batches, or something else than batches, a batch has a single value for
            each channel, or a norm is given NaN or infinity, or a module was compiled by torch.jit. The model
            is as it was.

    Source: Wu & Johnson, 2021, "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN), and Ioffe & Szegedy,
    2015, algorithm 2, for the unbiased variance. Deviation: moments are pooled over values and not averaged
    over batches, by Chan, Golub & LeVeque, 1979, eq. 2.1, in float64, so that the sizes of the batches do not
    matter to them.
    """
    with ranks.together("recalibrate_norms"):
        return _recalibrate(model, calibration, ranks)


def _recalibrate(model: nn.Module, calibration: Iterable[ModelInputs], ranks: Ranks) -> Recalibrated:
    scripted = next((name for name, each in model.named_modules() if isinstance(each, ScriptModule)), None)
    if scripted is not None:
        raise CalibrationError(
            "torch.jit compiled it, and what it computes cannot be seen",
            where=f"module {scripted!r}",
            remedy="Recalibrate the model before it is compiled",
        )
    device = device_of(model)
    owners = {id(buffer): name for name, buffer in model.named_buffers()}
    gathering = _Gathering(owners)
    count = 0
    with untouched(model, ()), torch.no_grad(), gathering:
        for number, batch in checked_batches(calibration, ranks):
            moved = Batch(args=tuple(batch.args), kwargs=batch.kwargs).to(device)
            gathering.batch, count = number, number + 1
            model(*moved.args, **moved.kwargs)
    found = gathering.pooled(dict(model.named_buffers()), ranks)
    count = sum(ranks.gather(count, "number of calibration batches"))
    for name, moments in found.items():
        if not moments.is_finite():
            raise CalibrationError(
                f"Norm {_norm_of(name)!r} was given NaN or infinity, or what float64 cannot hold",
                expected="finite activations",
                where="calibration",
                remedy="Look for it in the batches and in the weights",
            )
    norms = dict.fromkeys(_norm_of(name) for name in found)
    with torch.no_grad():
        for moments in found.values():
            moments.write()
        for name, module in _tracking(model):
            tracked = module._buffers.get("num_batches_tracked")
            if name in norms and tracked is not None:
                tracked.fill_(count)
    unused = [name for name, _ in _tracking(model) if name not in norms]
    return Recalibrated(tuple(norms), tuple(unused), count)


@dataclass(frozen=True)
class _Norm:
    """A function that normalises: all its arguments in order, and which one says "by the batch"."""

    arguments: tuple[str, ...]
    by_batch: str

    @property
    def per_example(self) -> bool:
        """It is an instance norm."""
        return self.by_batch == "use_input_stats"


def _of_modules(by_batch: str) -> _Norm:
    return _Norm(
        ("input", "running_mean", "running_var", "weight", "bias", by_batch, "momentum", "eps"), by_batch
    )


def _of_graphs(by_batch: str) -> _Norm:
    tensors = ("input", "weight", "bias", "running_mean", "running_var")
    return _Norm((*tensors, by_batch, "momentum", "eps", "cudnn_enabled"), by_batch)


_NORMS: dict[Callable[..., Tensor], _Norm] = {
    functional.batch_norm: _of_modules("training"),
    functional.instance_norm: _of_modules("use_input_stats"),
    torch.batch_norm: _of_graphs("training"),
    torch.instance_norm: _of_graphs("use_input_stats"),
    torch.ops.aten.batch_norm.default: _of_graphs("training"),
    torch.ops.aten.instance_norm.default: _of_graphs("use_input_stats"),
}
"""Every function that reads running statistics."""


class _Gathering(TorchFunctionMode):
    """Sees every norm that is computed, gathers its input's moments, and lets it use the batch's own.

    Args:
        owners: names of the model's buffers by their id.
    """

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self._owners = owners
        self.found: dict[int, _Moments] = {}
        self.batch = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func``; a norm without its running statistics."""
        norm = _NORMS.get(func)
        given = dict(kwargs or {})
        if norm is None:
            return func(*args, **given)
        named = dict(zip(norm.arguments, args, strict=False)) | given
        mean, variance = named.get("running_mean"), named.get("running_var")
        if id(mean) not in self._owners or id(variance) not in self._owners:
            return func(*args, **given)
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        x = named["input"]
        self._check_size(x, norm, self._owners[id(mean)])
        moments = self.found.setdefault(id(mean), _Moments(mean, variance, norm.per_example))
        moments.add(x.detach())
        named.update({"running_mean": None, "running_var": None, norm.by_batch: True})
        return func(**named)

    def pooled(self, buffers: Mapping[str, Tensor], ranks: Ranks) -> dict[str, _Moments]:
        """By the name of a norm's first buffer, what all processes gathered; some may not have run it."""
        mine = {self._owners[key]: moments for key, moments in self.found.items()}
        named = {
            name: (self._owners[id(moments.buffers[1])], moments.per_example)
            for name, moments in mine.items()
        }
        every: dict[str, Any] = {}
        for found in ranks.gather(named, "norms"):
            every |= found
        for name, (variance, per_example) in every.items():
            moments = mine.setdefault(name, _Moments(buffers[name], buffers[variance], per_example))
            moments.pool(ranks, f"statistics of {name}")
        return {name: mine[name] for name in every}

    def _check_size(self, x: Tensor, norm: _Norm, name: str) -> None:
        values = x[0, 0].numel() if norm.per_example else x.numel() // x.shape[1]
        if values < 2:
            raise CalibrationError(
                f"Norm {_norm_of(name)!r} gets a single value for each channel",
                expected="a batch that a variance can be computed from",
                where=f"calibration batch {self.batch}",
                remedy="Use batches of two examples or more",
            )


class _Moments:
    """The running statistics of one norm in the making.

    Args:
        mean_buffer: ``[C]``, where they go.
        variance_buffer: ``[C]``, where they go.
        per_example: an instance norm's: averages of the examples' own.
    """

    def __init__(self, mean_buffer: Tensor, variance_buffer: Tensor, per_example: bool) -> None:
        self.buffers = mean_buffer, variance_buffer
        self.per_example = per_example
        self._count = 0
        self._mean = torch.zeros_like(mean_buffer, dtype=torch.float64)
        self._spread = torch.zeros_like(self._mean)

    def add(self, x: Tensor) -> None:
        """Take the input of the norm in, ``[N, C, ...]``."""
        if self.per_example:
            variance, mean = torch.var_mean(x.double().flatten(2), dim=2, correction=1)
            self._count += len(x)
            self._mean += (mean - self._mean).sum(0) / self._count
            self._spread += variance.sum(0)
            return
        others = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = torch.var_mean(x.double(), dim=others, correction=0)
        count = x.numel() // x.shape[1]
        self._join(count, mean, variance * count)

    def pool(self, ranks: Ranks, what: str) -> None:
        """Join what all processes took in, from rank 0 upwards."""
        if ranks.size == 1:
            return
        counts = ranks.gather(self._count, what)
        parts = torch.zeros(ranks.size, 2, *self._mean.shape, dtype=torch.float64, device=self._mean.device)
        parts[ranks.rank] = torch.stack([self._mean, self._spread])
        self._count, self._mean, self._spread = 0, self._mean.zero_(), self._spread.zero_()
        for count, (mean, spread) in zip(counts, ranks.sum(parts, what), strict=True):
            if count:
                self._join(count, mean, spread)

    def _join(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Join the moments of ``count`` more values, or examples."""
        total, shift = self._count + count, mean - self._mean
        self._mean += shift * (count / total)
        between = 0.0 if self.per_example else shift.square() * (self._count * count / total)
        self._spread += spread + between
        self._count = total

    def is_finite(self) -> bool:
        return bool((self._mean.isfinite() & self._spread.isfinite()).all())

    def write(self) -> None:
        mean_buffer, variance_buffer = self.buffers
        mean_buffer.copy_(self._mean)
        variance_buffer.copy_(self._spread / (self._count if self.per_example else self._count - 1))


def _norm_of(buffer: str) -> str:
    """The module that a buffer such as ``layer1.bn.running_mean`` belongs to."""
    return buffer.rpartition(".")[0]


def _tracking(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every place that holds running statistics by the names that PyTorch gives them."""
    for name, module in model.named_modules():
        if isinstance(module._buffers.get("running_mean"), Tensor):
            yield name, module
