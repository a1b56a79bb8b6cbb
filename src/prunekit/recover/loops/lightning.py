"""Pruning inside ``lightning.Trainer.fit()``: masks or cuts, and checkpoints that resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from prunekit.errors import UsageError
from prunekit.recover.companion import use_optimizers
from prunekit.recover.loops.along import Along
from prunekit.recover.shrinking.cuts import Cutting
from prunekit.surgery import fold_masks

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as error:
    raise UsageError(
        "lightning is not installed, or not whole",
        expected="lightning with lightning.pytorch",
        remedy="pip install 'prunekit[lightning]'",
    ) from error


class PruningCallback(Along, Callback):
    """Lets a companion go along with ``Trainer.fit()``: one ``step()`` after every optimizer step.

    1. Cuts are made in place, so that the LightningModule, its attributes and the Trainer's optimizers and
       schedulers stay the same objects (:func:`prunekit.shrink`).
    2. Checkpoints say what was gone when they were written. ``fit(..., ckpt_path=...)`` with a fresh module
       and a fresh callback made by the same arguments gives the module that form before weights and
       optimizers are loaded.
    3. With ``fold`` masks become exact zeros in plain parameters at the end of the training, after the last
       checkpoint.

    Only what the companion was given and the training itself are looked at; no evaluation data is.

    Args:
        make: ``make(module, steps)`` makes the companion, such as ``lambda module, steps:
            pk.Shrinking(module, (images,), steps=steps, sparsity=0.5)``, which calls the LightningModule's
            own ``forward``; its optimizers are given by themselves.
        plan: instead of ``make``, one plan that is carried out in the middle of the training.
        groups: that the plan was made on.
        at: share of the training after which the plan is carried out, in [0, 1]; one step at least.
        fold: make masks permanent at the end of the training.

    Raises:
        UsageError: ``make`` and a plan, or neither; from the Trainer: a strategy that shards the model, cuts
            in several processes, or a training without a known number of steps.
    """

    _steps = _seen = 0
    """Optimizer steps of the training, and those that the companion was told of."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be pruned, and be there when a checkpoint is loaded."""
        if stage != "fit":
            return
        if self._finished:
            raise self.used_before()
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UsageError(
                f"the Trainer uses {type(trainer.strategy).__name__}",
                expected="whole parameters: one device, or DDP with masks only",
                remedy="Prune before the training, and train what is left",
            )
        self._restore_before_weights(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the companion, or take up the restored one, and tell it which optimizers there are."""
        vars(pl_module).pop("on_load_checkpoint", None)
        if self._companion is None:
            if trainer.global_step:
                raise UsageError(
                    f"the training resumes at step {trainer.global_step}, unknown to the callback",
                    expected="a checkpoint that was written with this callback",
                )
            steps = trainer.estimated_stepping_batches
            if not isinstance(steps, int) or steps < 1:
                raise UsageError(
                    f"the training has {steps} optimizer steps",
                    expected="a known number of them: max_steps, or max_epochs over data with a length",
                )
            self._steps = steps
            self._companion = self._make(pl_module, steps)
        if isinstance(self._companion, Cutting) and trainer.world_size > 1:
            raise UsageError(
                f"the model is to be cut in {trainer.world_size} processes",
                expected="one process: the wrapper around the model would go on with the tensors it had",
                remedy="Cut before the training and train what is left, or use masks",
            )
        self._seen = trainer.global_step
        use_optimizers(self._companion, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the companion of the optimizer steps that were made; none while gradients accumulate."""
        assert self._companion is not None
        while self._seen < trainer.global_step:
            self._seen += 1
            self._companion.step()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training is over: the model is left as it will be used."""
        self._finished = True
        if self._fold:
            fold_masks(pl_module, in_place=True)

    def state_dict(self) -> dict[str, Any]:
        """What was pruned, for the checkpoint."""
        if self._companion is None:
            return {}
        return {"steps": self._steps, "companion": self._companion.state_dict()}

    def _restore_before_weights(self, module: nn.Module) -> None:
        """Let the module's ``on_load_checkpoint`` give it its form first.

        Lightning calls the hooks of callbacks after the weights were loaded.
        """
        own: Callable[[dict[str, Any]], None] = module.on_load_checkpoint  # type: ignore[assignment]

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            state = checkpoint.get("callbacks", {}).get(self.state_key)
            if state and self._companion is None:
                self._steps = state["steps"]
                self.take_up(module, state)
            own(checkpoint)

        vars(module)["on_load_checkpoint"] = on_load_checkpoint
