"""One optimizer step: forward and backward of every part on every process, then the update."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prunekit.errors import TrainingError
from prunekit.ranks import Ranks, is_parted, is_sharded
from prunekit.recover.training.feed import Step
from prunekit.recover.training.objective import Objective, checked
from prunekit.recover.training.optimizers import make_optimizer
from prunekit.recover.training.settings import TrainingSettings
from prunekit.workload import Batch, device_of


class Stepper:
    """A model, what it is to minimise, and the optimizer.

    With several processes the gradients are averaged by PyTorch's DistributedDataParallel; a model that is
    sharded already (``fully_shard``) averages them itself.

    Args:
        model: trained in place.
        objective: its parameters are trained along if it is a module.
        settings: of the optimizer, precision and clipping.
        ranks: the processes.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, settings: TrainingSettings, ranks: Ranks
    ) -> None:
        self.both = _Both(model, objective)
        self.settings, self.ranks = settings, ranks
        self.device = device_of(model)
        self.optimizer = make_optimizer(
            self.both,
            settings.optimizer,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.runs: nn.Module = self.both
        if is_sharded(model):
            self._check_all_sharded()
        elif ranks.size > 1:
            self.runs = DistributedDataParallel(
                self.both, process_group=ranks.group, find_unused_parameters=True
            )

    def backward(self, step: Step) -> float:
        """Add the gradients of a step to none; the model is unchanged but for buffers.

        Returns:
            What this process adds to the mean loss over the examples of all processes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total, mixed = 0.0, self.settings.precision == "bf16"
        for number, part in enumerate(step.parts, start=1):
            batch = part.batch.to(self.device)
            with self._synchronised(number == len(step.parts)):
                # Before any process waits for the others' gradients, all know that none has failed.
                with (
                    self.ranks.together("a forward pass"),
                    torch.autocast(self.device.type, torch.bfloat16, enabled=mixed),
                ):
                    loss = checked(self._loss(batch))
                weighted = loss * part.share
                # The processes' gradients are averaged, so their sum is as many times larger.
                (weighted * self.ranks.size).backward()
            total += float(weighted.detach()) if part.share else 0.0
        return total

    def update(self, rate: float) -> None:
        """Clip the gradients, and make the optimizer's step with this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.both.parameters(), self.settings.clip_norm)
        self.optimizer.step()

    def _check_all_sharded(self) -> None:
        whole = [
            name.removeprefix("model.")
            for name, parameter in self.both.named_parameters()
            if parameter.requires_grad and not is_parted(parameter)
        ]
        if whole:
            raise TrainingError(
                f"{whole[0]} is not sharded, while other parameters are: nothing would average its gradient",
                expected="fully_shard() on the whole model, and on an objective with parameters of its own",
                where="the model to train",
            )

    def _loss(self, batch: Batch) -> Tensor:
        with warnings.catch_warnings():  # That it looked for unused parameters and found none is no news.
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            return self.runs(batch)

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.runs, DistributedDataParallel) and not last:
            return self.runs.no_sync()
        return nullcontext()


class _Both(nn.Module):
    """The loss as the output of one module, so that all that it depends on is seen to take part."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective(self.model, batch)
