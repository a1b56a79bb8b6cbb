"""Pruning inside ``transformers.Trainer.train()``: masks or cuts, and checkpoints that resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch import nn

from prunekit.errors import StorageError, UsageError
from prunekit.files import write_atomically
from prunekit.recover.companion import use_optimizers
from prunekit.recover.loops.along import Along, form_digest, misfit
from prunekit.recover.shrinking.cuts import Cutting
from prunekit.surgery import fold_masks

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise UsageError(
        "transformers is not installed, or not whole",
        expected="transformers with its Trainer",
        remedy="pip install 'transformers[torch]>=5.20'",
    ) from error

STATE = "prunekit.json"
"""The file in every checkpoint of the Trainer that says what was pruned when it was written."""


class PruningCallback(Along, TrainerCallback):
    """Lets a companion go along with ``Trainer.train()``: one ``step()`` after every optimizer step.

    1. Cuts are made in place, so that the Trainer's model, optimizer, learning-rate scheduler and its own
       loop go on with the same objects (:func:`prunekit.shrink`).
    2. Beside the weights of every checkpoint, ``prunekit.json`` says what was gone. To resume, make model,
       callback and Trainer as before, and call :meth:`restore` before
       ``trainer.train(resume_from_checkpoint=...)``.
    3. A model that was pruned further is another model: what counts as the Trainer's best one begins anew
       with every change, so that ``load_best_model_at_end`` never loads one of another form.
    4. With ``fold`` masks become exact zeros in plain parameters at the end of the training.

    Only what the companion was given and the training itself are looked at; no evaluation data is.

    Args:
        make: ``make(model, steps)`` makes the companion, such as ``lambda model, steps:
            pk.Shrinking(model, kwargs=batch, steps=steps, sparsity=0.5)``; its optimizer is given by itself.
        plan: instead of ``make``, one plan that is carried out in the middle of the training.
        groups: that the plan was made on.
        at: share of the training after which the plan is carried out, in [0, 1]; one step at least.
        fold: make masks permanent at the end of the training.

    Raises:
        UsageError: ``make`` and a plan, or neither; from the Trainer: FSDP or DeepSpeed, or cuts in several
            processes.
    """

    _form = ""
    """Of the model when the best one so far was found."""
    _guard: Any = None

    def restore(self, trainer: Trainer, checkpoint: str | Path | bool) -> None:
        """Give a fresh Trainer's model the form that it had at a checkpoint, so that training can resume.

        Args:
            trainer: with this callback; its model as it was before the training.
            checkpoint: the directory, or True for the last one in the Trainer's ``output_dir``.

        Raises:
            StorageError: there is no checkpoint, or nothing in it says what was pruned.
            UsageError: it was made by other arguments, or this callback was used before.
        """
        if self._companion is not None:
            raise self.used_before()
        if isinstance(checkpoint, bool):
            checkpoint = get_last_checkpoint(trainer.args.output_dir) or "(none)"
        model = trainer.model
        assert isinstance(model, nn.Module)
        state = _read(Path(checkpoint) / STATE)
        self.take_up(model, state)

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The Trainer is made: refuse what shards the model, and checkpoints that do not fit it."""
        _refuse_shards()
        model = given.get("model")
        if self._guard is None and isinstance(model, nn.Module):
            self._guard = model.register_load_state_dict_pre_hook(_check_fit)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Make the companion, or take up the restored one, and tell it which optimizer there is."""
        if self._finished:
            raise self.used_before()
        model = given["model"]
        if self._companion is None:
            if state.global_step:
                raise UsageError(
                    f"the training resumes at step {state.global_step}, and the callback knows nothing of it",
                    expected="the form of the model to be restored first",
                    remedy="Call callback.restore(trainer, checkpoint) before trainer.train()",
                )
            self._companion = self._make(model, state.max_steps)
        elif self._companion.state_dict().get("step", state.global_step) != state.global_step:
            raise UsageError(
                f"the training begins at step {state.global_step}, not at that of the restored checkpoint",
                remedy="Call trainer.train(resume_from_checkpoint=...) with the checkpoint that was restored",
            )
        if isinstance(self._companion, Cutting) and args.world_size > 1:
            raise UsageError(
                f"the model is to be cut in {args.world_size} processes",
                expected="one process: the wrapper around the model would go on with the tensors it had",
                remedy="Cut before the training and train what is left, or use masks",
            )
        use_optimizers(self._companion, [given["optimizer"]])
        self._form = form_digest(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """An optimizer step was made."""
        assert self._companion is not None
        self._companion.step()

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A figure is there: it is compared with figures of the same form only."""
        self._forget_best(state, given["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The training may end here: nothing of another form is loaded then."""
        self._forget_best(state, given["model"])

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A checkpoint was written: say beside it what is pruned."""
        assert self._companion is not None
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        content = {"steps": state.max_steps, "companion": self._companion.state_dict()}
        try:
            write_atomically(directory / STATE, json.dumps(content, sort_keys=True).encode())
        except (OSError, TypeError) as error:
            raise StorageError(f"it could not be written ({error})", where=str(directory / STATE)) from error

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The training is over: the model is left as it will be used."""
        self._finished = True
        if self._guard is not None:
            self._guard.remove()
        if self._fold:
            fold_masks(given["model"], in_place=True)

    def _forget_best(self, state: Any, model: nn.Module) -> None:
        form = form_digest(model)
        if form != self._form:
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
            self._form = form


def _refuse_shards() -> None:
    """Raise UsageError under FSDP and DeepSpeed, which hold no whole parameters."""
    state = AcceleratorState() if AcceleratorState._shared_state else None
    for kind in ("fsdp_plugin", "deepspeed_plugin"):
        if getattr(state, kind, None) is not None:
            raise UsageError(
                f"the Trainer uses {kind.removesuffix('_plugin').upper()}",
                expected="whole parameters: one process, or DistributedDataParallel with masks only",
                remedy="Prune before the training, and train what is left",
            )


def _check_fit(model: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Called by ``load_state_dict``, which would leave out silently what it has no place for."""
    inner = {
        name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)
    }
    if problem := misfit(model, inner):
        raise UsageError(
            f"the weights are those of a model that was pruned otherwise: {problem}",
            remedy="Call callback.restore(trainer, checkpoint) before the training resumes",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"it cannot be read ({error})",
            expected=f"a checkpoint that was written with this callback, with {STATE} in it",
            where=str(path),
        ) from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("steps"), int)
        or "companion" not in content
    ):
        raise StorageError("it is not what this callback writes", where=str(path))
    return content
